"""What laws take as given is data: a file for each family of devices, which a device may differ from."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandtable import contracts
from sandtable.demand.op import Op
from sandtable.demand.operator import Operator, operator_named, operators
from sandtable.demand.operator_shapes import CollectiveShape, GemmShape
from sandtable.hardware import Laws, LawSettings, Machine, Roofline, library
from sandtable.model.cost_model import CostModel
from sandtable.runs.predict import guesses_of, used_parts

LAWS: dict[str, Operator[object]] = {law.fitted_as: law for law in operators().values() if law.given}
PROCESSORS = ("cpu", "gpu", "soc_gpu")


@pytest.mark.parametrize("name", [*PROCESSORS, "link"])
def test_a_family_states_all_that_laws_take_as_given_on_it(name: str) -> None:
    stated = {law: set(settings.settings) for law, settings in library.family(name).laws.items()}
    resources = ("network",) if name == "link" else ("compute",)
    assert stated == {key: set(law.given) for key, law in LAWS.items() if law.resource in resources}


def test_what_a_variant_leaves_out_is_as_in_its_base() -> None:
    gpu, cpu = (library.family(name).laws["attention"].settings for name in ("gpu", "cpu"))
    assert {key for key in gpu if gpu[key] != cpu[key]} == {
        "clocks_per_score",
        "flops_per_score",
        "block_queries",
    }


@pytest.mark.parametrize("path", library.device_files("family").values(), ids=lambda path: path.stem)
def test_a_family_keeps_the_contract_of_devices(path: Path) -> None:
    contracts.check_device(path)


def test_a_device_may_differ_from_its_family() -> None:
    plain = library.load_accelerator("nvidia_h100_sxm")
    laws: Laws = {"gemm": LawSettings(settings={"edge": 40.0})}
    own = plain.model_copy(update={"laws": laws})
    law = operator_named("gemm")
    shape = law.columns(GemmShape(8192.0, 8192.0, 8192.0))
    seconds = [
        float(law.seconds(Roofline.of(device, device.memory), law.typical(), shape, dtype="bfloat16")[0])
        for device in (plain, own)
    ]
    assert seconds[1] > 1.1 * seconds[0]
    assert (
        Roofline.of(own, own.memory).given("gemm")["overlap"]
        == library.family("gpu").laws["gemm"].settings["overlap"]
    )


def guesses(machine: Machine, *ops: Op) -> list[str]:
    return [path for path in guesses_of(ops, used_parts(ops, machine), machine) if ": laws." in path]


def test_a_prediction_lists_the_guesses_of_the_laws_that_it_rests_on_and_no_others() -> None:
    machine = library.load_machine("dgx_h100")
    product = Op(name="p", operator="gemm", account="compute", shape=GemmShape(64, 64, 64), on="accelerator")
    shape = CollectiveShape(1e6, 8, 8)
    collective = Op(name="c", operator="all_reduce", account="communication", shape=shape, on="accelerator")
    assert CostModel(machine).time(product).seconds > 0
    of_products = guesses(machine, product)
    assert "gpu: laws.gemm.overlap" in of_products
    assert {path.rpartition(".")[0] for path in of_products} == {"gpu: laws.gemm"}
    assert "link: laws.collective.direct_hops" in guesses(machine, collective)
    # what is published is no guess
    assert "gpu: laws.gemm.plain_flops_per_clock" not in of_products
    assert guesses(machine, Op(name="x", operator="copy", account="memory", bytes_read=1.0)) == []


def test_what_a_device_states_itself_is_no_guess_of_its_family() -> None:
    machine = library.load_machine("dgx_h100")
    assert machine.accelerator is not None
    laws: Laws = {"gemm": LawSettings(settings={"edge": 4.0})}
    device = machine.accelerator.device.model_copy(update={"laws": laws})
    accelerator = machine.accelerator.model_copy(update={"device": device})
    product = Op(name="p", operator="gemm", account="compute", shape=GemmShape(64, 64, 64), on="accelerator")
    before, after = (
        guesses(m, product) for m in (machine, machine.model_copy(update={"accelerator": accelerator}))
    )
    assert set(before) - set(after) == {"gpu: laws.gemm.edge"}


def test_a_setting_that_no_law_knows_is_refused_by_the_contract(tmp_path: Path) -> None:
    text = library.device_files("family")["soc_gpu"].read_text()
    path = tmp_path / "soc_gpu.yaml"
    path.write_text(text.replace("flop_energy: 0 J", "egde: 4", 1))
    with pytest.raises(AssertionError, match=r"laws.gemm states \['egde'\]"):
        contracts.check_device(path)
