-- The database and its two roles. Run once by a superuser, with psql 15 or newer:
--   FEDLOOM_OWNER_PASSWORD=… FEDLOOM_PASSWORD=… psql --set ON_ERROR_STOP=1 --file roles.sql "$SUPERUSER_URL"
-- `fedloom_owner` creates and alters tables (FEDLOOM_MIGRATION_DATABASE_URL). `fedloom` is the role of the running
-- processes (FEDLOOM_DATABASE_URL). `coordinator migrate` grants its rights, which do not include altering tables.
\set owner_password ''
\set password ''
\getenv owner_password FEDLOOM_OWNER_PASSWORD
\getenv password FEDLOOM_PASSWORD

CREATE ROLE fedloom_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE fedloom LOGIN PASSWORD :'password';
CREATE DATABASE fedloom OWNER fedloom_owner;
REVOKE ALL ON DATABASE fedloom FROM PUBLIC;
GRANT CONNECT ON DATABASE fedloom TO fedloom;

\connect fedloom
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT ALL ON SCHEMA public TO fedloom_owner;
