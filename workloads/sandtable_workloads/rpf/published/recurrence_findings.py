"""What recurrent Poisson factorization promises, beside models that were fitted here to events of known parameters.

Hosseini et al., "Recurrent Poisson Factorization for Temporal Recommendation", KDD 2017: users return to what they did
(HRPF), do what those whom they follow did (SRPF), and prefer other things at other hours (DRPF). Claims are those of
the models; tables of the paper are not repeated, as its events are not public. Whether a claim holds is decided by the
runs that ship (`study_tables`): each seed draws parameters and events, and all models are fitted to these.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, ClassVar

from sandtable.studies.finding import Finding, Findings
from sandtable.table import Table
from sandtable_workloads.rpf.evaluated import study_tables
from sandtable_workloads.rpf.evaluated.study_tables import EXPECTED_SLOPE, Row, Run
from sandtable_workloads.seed_intervals import Gain

COLUMNS = ("panel", "series", "x", "y")


class RecurrenceFindings(Findings):
    """Recurrence, followed users and the clock, each on events that have it and on such that do not."""

    name: ClassVar[str] = "rpf"

    def findings(self) -> Sequence[Finding]:
        """Return the claims with the data of their figures."""
        runs = study_tables.committed()
        rows = study_tables.contrasts(runs)

        def gaining(model: str) -> list[Row]:
            return [row for row in rows if row.contrast.gains and row.contrast.model == model]

        (recurrence,) = gaining("HRPF")
        in_vain = [row for row in rows if not row.contrast.gains]
        return (
            _ranks(
                "recurrence", "What a user did lately ranks better than lasting preferences", [recurrence], runs
            ),
            _returns(
                "returning_time",
                "Excitation by a user's own events foresees better when the user's next event comes",
                {"next": recurrence.next, "split": recurrence.split},
                runs,
            ),
            _returns(
                "returning_time_after_training",
                "It also does when asked, as in the authors' code, right after the last event before the split",
                {"last": recurrence.last},
                runs,
                "; long silences are the likeliest to lie across the split, against whoever expects a quick return",
            ),
            _ranks("followed_users", "The users whom one follows tell what one does next", gaining("SRPF"), runs),
            _ranks("clock", "Preferences by weekday and hour rank better where they are so", gaining("DRPF"), runs),
            _ranks("controls", "Nothing is gained where there is nothing to gain", in_vain, runs),
            _recovery(runs),
        )


ASKED = {"next": "after each event", "split": "at the split", "last": "after the last event of training"}


def _ranks(name: str, claim: str, rows: Sequence[Row], runs: Sequence[Run]) -> Finding:
    said = [f"{row.contrast.model} over {row.contrast.against} {row.ndcg.shown('+.3f')}" for row in rows]
    contrasts = [row.contrast for row in rows]
    lines = dict.fromkeys((each.case, model) for each in contrasts for model in (each.against, each.model))
    recalled: list[list[Any]] = [
        [case, model, k, fmean(run.figures[model][f"recall_{k}"] for run in runs if run.case == case)]
        for case, model in lines
        for k in (5, 10, 20)
    ]
    return Finding(
        name=name,
        claim=claim,
        holds=all(row.as_expected for row in rows),
        evidence=f"NDCG of {'; of '.join(said)} (90 %, {rows[0].ndcg.n} seeds)",
        data=Table(columns=COLUMNS, rows=recalled),
        x="k",
        y="recall@k, mean over seeds",
        log_y=False,
    )


def _returns(name: str, claim: str, asked: dict[str, Gain], runs: Sequence[Run], why: str = "") -> Finding:
    said = (f"{error.shown('+.1f')} % asked {ASKED[when]}" for when, error in asked.items())
    errors: list[list[Any]] = [
        [ASKED[when], model, run.seed + 1, run.figures[model][f"{when}_mean_h"]]
        for when in asked
        for model in ("HPF", "HRPF")
        for run in runs
        if run.case == "events recur"
    ]
    return Finding(
        name=name,
        claim=claim,
        holds=all(error.high < 0 for error in asked.values()),
        evidence=f"Mean absolute error of HRPF beside HPF's: {', '.join(said)} (90 %){why}",
        data=Table(columns=COLUMNS, rows=errors),
        x="seed",
        y="mean absolute error of the returning time (h)",
        log_y=False,
    )


def _recovery(runs: Sequence[Run]) -> Finding:
    falls = {name: study_tables.slopes(runs, name) for name in ("base", "tau")}
    found = study_tables.recoveries(runs)
    bias = found[-1].bias
    rooted = all(each.low <= EXPECTED_SLOPE <= each.high for each in falls.values())
    titles = {"base": "rates of all pairs", "tau": "self-excitation"}
    rows: list[list[Any]] = [
        ["relative error", titles[name], row.n_events, getattr(row, name).mean] for name in titles for row in found
    ]
    return Finding(
        name="recovery",
        claim="Parameters are found again: errors fall with the root of the number of events, excitation is unbiased",
        holds=rooted and bias.low <= 0 <= bias.high,
        evidence=(
            f"Slopes {falls['base'].shown('+.3f')} of rates and {falls['tau'].shown('+.3f')} of excitation, whose bias "
            f"at {found[-1].n_events:,} events is {bias.shown('+.2f')} % (90 %, {bias.n} seeds)"
        ),
        data=Table(columns=COLUMNS, rows=rows),
        x="events",
        y="error (%)",
    )
