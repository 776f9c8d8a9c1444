"""The real process that computes steps, which knows the algorithms of the tests as well."""

from coordinator.rounds.step_process import main
from tests.support.algorithms import installed

if __name__ == "__main__":
    with installed():
        main()
