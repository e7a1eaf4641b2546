import datetime as dt
from typing import Any

import pytest
from pydantic import ValidationError

from sandtable import hardware, units
from sandtable.model.laws.storage_law import law_of


def storage(**changes: Any) -> hardware.Storage:
    """A drive of 1000 GB that reads 1000 MB/s and 100 kIOPS."""
    data: dict[str, Any] = {
        "kind": "storage",
        "name": "drive",
        "title": "A drive",
        "datasheet": {
            "interface": "NVMe",
            "capacity": "1000 GB",
            "sequential_read": "1000 MB/s",
            "sequential_write": "500 MB/s",
            "random_read": "100 kIOPS",
        },
        "sources": {"datasheet": "a data sheet", "variants": "a page"},
    }
    return hardware.Storage.model_validate(data | changes)


def test_every_number_needs_a_source_and_the_message_says_how() -> None:
    with pytest.raises(ValidationError) as fault:
        storage(sources={"datasheet.capacity": "a data sheet"})
    path = "datasheet.sequential_read"
    message = f"{path} has no source: add 'sources: {{{path}: <where the number is from>}}', or 'guess'"
    assert message in str(fault.value)


def test_a_source_covers_what_is_below_it_and_the_longest_path_wins() -> None:
    drive = storage(sources={"datasheet": "a sheet", "datasheet.capacity": "guess: recalled"})
    assert hardware.source_of(drive, "datasheet.random_read") == "a sheet"
    assert hardware.source_of(drive, "datasheet.capacity") == "guess: recalled"
    assert hardware.source_of(drive, "price.hour") is None
    assert drive.guesses() == ["datasheet.capacity"]


def test_numbers_in_lists_need_a_source_too() -> None:
    row = {"provider": "p", "instance": "i", "on_demand": "1 USD/h", "as_of": "2026-01-01"}
    data = {"kind": "prices", "name": "p", "title": "P", "price": [row], "sources": {"price": "a page"}}
    prices = hardware.PriceList.model_validate(data)
    assert "price.0.on_demand" in list(hardware.number_paths(prices))
    assert prices.price[0].as_of == dt.date(2026, 1, 1)
    with pytest.raises(ValidationError, match="has no source"):
        hardware.PriceList.model_validate(data | {"sources": {}})


def test_specs_are_frozen_and_refuse_unknown_fields() -> None:
    drive = storage()
    with pytest.raises(ValidationError, match="frozen"):
        drive.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        storage(colour="black")


@pytest.mark.parametrize("name", ["Drive", "my-drive", "_drive", "", "a/b"])
def test_names_are_lower_case_words(name: str) -> None:
    with pytest.raises(ValidationError):
        storage(name=name)


class TestEstimate:
    def test_a_scalar_is_an_estimate_without_width(self) -> None:
        estimate = hardware.Estimate[units.Seconds].model_validate("118 us")
        assert (estimate.low, estimate.value, estimate.high) == (118e-6, 118e-6, 118e-6)

    def test_a_missing_end_takes_the_value(self) -> None:
        estimate = hardware.Estimate[units.Seconds].model_validate({"value": "2 s", "high": "3 s"})
        assert (estimate.low, estimate.high) == (2, 3)

    def test_the_order_is_checked(self) -> None:
        with pytest.raises(ValidationError, match=r"an interval needs low <= value <= high, not 3\.0, 2\.0, 2\.0"):
            hardware.Estimate[units.Seconds].model_validate({"value": "2 s", "low": "3 s"})


class TestSelect:
    drive = storage(
        variants={
            "quarter": {"capacity": "250 GB"},
            "one": {"capacity": "1000 GB"},
            "two_halves": {"capacity": "500 GB", "drives": 2},
            "four": {"capacity": "1000 GB", "drives": 4},
            "larger": {"capacity": "1600 GB"},
            "published": {"capacity": "1000 GB", "drives": 4, "random_read": "250 kIOPS"},
        }
    )

    @pytest.mark.parametrize(
        ("variant", "capacity", "read", "random"),
        [
            ("quarter", 250e9, 250e6, 25e3),
            ("one", 1000e9, 1000e6, 100e3),
            ("two_halves", 1000e9, 1000e6, 100e3),
            ("four", 4000e9, 4000e6, 400e3),
            ("larger", 1600e9, 1000e6, 100e3),
            ("published", 4000e9, 4000e6, 250e3),
        ],
    )
    def test_rates_follow_share_and_drives(self, variant: str, capacity: float, read: float, random: float) -> None:
        chosen = self.drive.select(variant)
        assert chosen.name == f"drive@{variant}"
        assert chosen.datasheet.capacity_bytes == capacity
        assert chosen.datasheet.sequential_read_bytes_per_s == read
        assert chosen.datasheet.sequential_write_bytes_per_s == read / 2
        assert chosen.datasheet.random_read_per_s == random
        assert not chosen.variants

    def test_a_slice_may_get_more_than_its_share_but_never_more_than_the_drive(self) -> None:
        sheet = dict(storage().datasheet.model_dump(by_alias=True)) | {"slice_read": "2000 MB/s"}
        drive = storage(datasheet=sheet, variants=self.drive.variants)
        read = {v: drive.select(v).datasheet.sequential_read_bytes_per_s for v in ("quarter", "two_halves", "four")}
        assert read == {"quarter": 500e6, "two_halves": 2000e6, "four": 4000e6}

    def test_what_the_sheet_leaves_open_stays_open(self) -> None:
        sheet = {"interface": "NVMe", "capacity": "1 TB", "sequential_read": "1 GB/s"}
        drive = storage(datasheet=sheet, variants={"half": {"capacity": "500 GB"}})
        assert drive.select("half").datasheet.random_read_per_s is None

    @pytest.mark.parametrize("variant", ["quarter", "one", "four", "published"])
    def test_what_was_fitted_to_the_drive_holds_in_proportion(
        self, machine: hardware.Machine, variant: str
    ) -> None:
        whole = self.drive.model_copy(update={"fitted": machine.storage.fitted})
        chosen = whole.select(variant)
        law, of_drive = law_of(chosen), law_of(whole)
        sheet, was = chosen.datasheet, whole.datasheet
        assert sheet.random_read_per_s is not None
        assert was.random_read_per_s is not None
        bytes_times = sheet.sequential_read_bytes_per_s / was.sequential_read_bytes_per_s
        assert law.bandwidth_bytes_per_s == pytest.approx(bytes_times * of_drive.bandwidth_bytes_per_s)
        assert law.sequential_bytes_per_s == pytest.approx(bytes_times * of_drive.sequential_bytes_per_s)
        requests_times = sheet.random_read_per_s / was.random_read_per_s
        assert law.requests_per_s == pytest.approx(requests_times * of_drive.requests_per_s)
        # a lone request is served by one drive, and waits for no other
        assert law.first_byte_s == of_drive.first_byte_s
        assert law.lane_bytes_per_s == min(of_drive.lane_bytes_per_s, law.bandwidth_bytes_per_s)
        assert chosen.sources["fitted"].startswith("derived")
        assert whole.select("one").fitted == whole.fitted

    def test_an_unknown_variant_is_a_key_error(self) -> None:
        with pytest.raises(KeyError):
            self.drive.select("huge")


def test_a_constant_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="launch: this section is empty: write its value, low and high"):
        hardware.OperatorFit.model_validate({"launch": {}}, context=units.AT_EDGE)
