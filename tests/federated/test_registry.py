"""Registry: discovery, checks and lookup of the folders under `federated.algorithms`."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

import federated.algorithms
from federated import registry
from federated.contract import Algorithm, AlgorithmConfig
from federated.trainable import Full, Lora, Prefix

PACKAGE = "federated.algorithms.fedavg"
FOLDER = Path(federated.algorithms.__path__[0])


class TestDiscovery:
    def test_every_folder_is_an_algorithm_of_its_name(self) -> None:
        folders = sorted(path.parent.name for path in FOLDER.glob("*/__init__.py"))
        assert list(registry.algorithms()) == folders
        assert all(algorithm.name == name for name, algorithm in registry.algorithms().items())

    def test_the_table_cannot_be_changed(self) -> None:
        with pytest.raises(TypeError):
            registry.algorithms()["other"] = registry.algorithm("fedavg")  # type: ignore[index]

    def test_an_unknown_name_says_which_exist(self) -> None:
        with pytest.raises(registry.UnknownAlgorithm, match=r"unknown algorithm 'fedsgd'; there are: .*fedavg"):
            registry.algorithm("fedsgd")

    def test_listing_and_configuring_load_no_torch(self) -> None:
        program = (
            "import sys; from federated import registry\n"
            "for name in registry.algorithms(): registry.algorithm(name).config.model_json_schema()\n"
            "registry.make_config('fedavg', {'local_steps': 3})\n"
            "print('torch' in sys.modules)"
        )
        answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        assert answer.stdout.strip() == "False"


class TestConfig:
    def test_values_from_json_make_a_config(self) -> None:
        config = registry.make_config("fedavg", {"local_steps": 3, "betas": [0.8, 0.9]})
        assert config.model_dump()["betas"] == (0.8, 0.9)

    @pytest.mark.parametrize(
        ("values", "place"),
        [
            ({"rate": 1}, ("rate",)),
            ({"learning_rate": 0}, ("learning_rate",)),
            ({"server_optimizer": "sgd"}, ("server_optimizer",)),
            ({"server_betas": [0.9, 1.0]}, ("server_betas", 1)),
        ],
    )
    def test_a_bad_value_is_refused_with_its_place(
        self, values: dict[str, object], place: tuple[str | int, ...]
    ) -> None:
        with pytest.raises(ValidationError) as caught:
            registry.make_config("fedavg", values)
        assert [error["loc"] for error in caught.value.errors()] == [place]

    def test_settings_of_a_client_are_refused_where_none_are_known(self) -> None:
        with pytest.raises(ValueError, match="unknown client setting 'rank'"):
            registry.make_config("fedavg", {}).check_settings({"rank": 4})


class TestTrainable:
    def test_what_the_algorithm_admits_passes(self) -> None:
        config = registry.make_config("fedavg", {})
        registry.check_trainable("fedavg", config, Lora())
        registry.check_trainable("fedavg", config, Prefix())

    def test_another_kind_is_refused_with_those_that_are_admitted(self) -> None:
        with pytest.raises(ValueError, match="fedavg does not train 'full'; it trains: lora, prefix"):
            registry.check_trainable("fedavg", registry.make_config("fedavg", {}), Full())

    def test_the_config_may_refuse_a_kind_that_the_algorithm_admits(self) -> None:
        with pytest.raises(ValueError, match="freeze_a needs a LoRA trainable, not 'prefix'"):
            registry.check_trainable("fedavg", registry.make_config("fedavg", {"freeze_a": True}), Prefix())


class TestChecked:
    DECLARED = registry.algorithm("fedavg")

    def test_what_is_declared_in_form_passes(self) -> None:
        assert registry.check_declaration(self.DECLARED, PACKAGE, FOLDER / "fedavg") is self.DECLARED

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"name": "other"}, "declares the name 'other'; name it 'fedavg'"),
            ({"config": BaseModel}, "must derive from federated.contract.AlgorithmConfig"),
            ({"config": AlgorithmConfig()}, "must derive from federated.contract.AlgorithmConfig"),
            ({"server": f"{PACKAGE}.server"}, "must be 'module:Class'"),
            ({"server": f"{PACKAGE}.server:"}, "must be 'module:Class'"),
            ({"client": f"{PACKAGE}.nowhere:Client"}, "must be 'module:Class'"),
            ({"client": "federated.payloads.payload:Payload"}, "with a module inside federated.algorithms.fedavg"),
            ({"ledger": f"{PACKAGE}.nowhere:weights"}, "must be 'module:Class'"),
        ],
    )
    def test_what_breaks_the_form_is_named(self, change: dict[str, object], words: str) -> None:
        declared: Algorithm = dataclasses.replace(self.DECLARED, **change)  # type: ignore[arg-type]
        with pytest.raises(registry.MisdeclaredAlgorithm, match=words):
            registry.check_declaration(declared, PACKAGE, FOLDER / "fedavg")

    def test_a_folder_that_declares_nothing_is_named(self) -> None:
        with pytest.raises(registry.MisdeclaredAlgorithm, match="fedavg must set ALGORITHM"):
            registry.check_declaration(None, PACKAGE, FOLDER / "fedavg")

    def test_a_folder_without_a_readme_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(registry.MisdeclaredAlgorithm, match=r"needs a README\.md"):
            registry.check_declaration(self.DECLARED, PACKAGE, tmp_path)
