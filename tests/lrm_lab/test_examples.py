"""Pictures that are picked by rule, beside a plain run of the same trials."""

import json

import pytest
import torch

from lrm_core.trials import make_trials
from lrm_lab import examples
from lrm_lab.examples import RULES, peaks_inside
from lrm_lab.goals import class_familiarity
from lrm_lab.trials import COMPOSITES
from prior.captions import with_article
from steering.evidence import features
from steering.rollouts import class_goals, run_steered, run_unsteered

TRIALS = 12  # as `everything` has them


def test_a_peak_is_the_centre_of_the_strongest_cell():
    heatmap = torch.zeros(4, 4)
    heatmap[1, 2], heatmap[0, 0] = 0.8, 0.7  # its centre: 0.625 from the left, 0.375 from the top
    assert peaks_inside(heatmap, (0.6, 0.3, 0.7, 0.4))
    assert peaks_inside(heatmap, (0.624, 0.374, 1.0, 1.0))
    for box in ((0.63, 0.3, 0.7, 0.4), (0.6, 0.38, 0.7, 0.4), (0.0, 0.0, 0.62, 1.0), (0.0, 0.0, 1.0, 0.37)):
        assert not peaks_inside(heatmap, box)
    assert not peaks_inside(heatmap, (0.625, 0.3, 0.7, 0.4))  # on the edge
    assert not peaks_inside(torch.zeros(4, 4), (0.0, 0.0, 1.0, 1.0))
    wide = torch.zeros(2, 8)
    wide[1, 7] = 1.0
    assert peaks_inside(wide, (0.9, 0.7, 0.95, 0.8))


def test_failures_are_on_the_wrong_side_of_one_half_the_worst_first(make_item):
    present = [make_item(probability=p, trial=i) for i, p in enumerate((0.4, 0.5, 0.1, 0.4, 0.9))]
    absent = [make_item("absent", p, trial=i) for i, p in enumerate((0.5, 0.49, 0.8, 0.5))]
    placed = [make_item(probability=p, peak=(0, c), trial=i) for i, (p, c) in enumerate(((0.6, 3), (0.9, 0), (0.8, 2)))]
    found = examples._failures(present, absent, placed)
    assert {rule: [i.trial for i in items] for rule, items in found.items()} == {
        "misses": [2, 0, 3],
        "hallucinations": [2, 0, 3],
        "misplaced": [2, 0],
    }


def test_items_are_the_trials_of_the_seed_with_the_verdicts_of_a_plain_run(judge, labelled, everything):
    goals = class_goals(judge)
    familiarity = class_familiarity(judge)
    for number, kind in enumerate(COMPOSITES):
        trials = make_trials(kind, *labelled, 6, TRIALS, 5 + number)
        unsteered = run_unsteered(judge.network, trials.scenes.pixels)
        for column, classes in enumerate((trials.present, trials.absent)):
            items = [pair[column] for pair in everything.shown[kind]]
            after = run_steered(judge.network, unsteered, goals[classes])
            values = features(unsteered.seen, after, goals[classes], familiarity[classes])
            probabilities = torch.tensor([i.probability for i in items])
            torch.testing.assert_close(probabilities, judge.verdict.probability(values), atol=1e-4, rtol=1e-4)
            assert [i.query for i in items] == [with_article(judge.class_names[c]) for c in classes]
            assert [i.trial for i in items] == list(range(TRIALS))
            for i, inside, boxes, label in zip(items, trials.scenes.labels, trials.scenes.boxes, classes, strict=True):
                assert i.names == tuple(judge.class_names[c] for c in inside)
                place = (inside == label).nonzero()[:, 0].tolist()
                assert [i.box] == ([tuple(boxes[p].tolist()) for p in place] or [None])
                assert float(i.heatmap.max()) in (0.0, 1.0)


def test_failures_and_counts_are_those_of_all_trials(judge, everything):
    plain = examples.summary(everything)
    for kind, pairs in everything.shown.items():
        misses = sorted(p.probability for p, _ in pairs if p.probability < 0.5)
        dreams = sorted((a.probability for _, a in pairs if a.probability >= 0.5), reverse=True)
        placed = [p for p, _ in pairs if judge.verdict.answer(p.probability) == "present" and kind != "blend"]
        wrong = sorted((p.probability for p in placed if not peaks_inside(p.heatmap, p.box)), reverse=True)
        counts = plain["kinds"][kind]
        for rule, expected in zip(RULES, (misses, dreams, wrong), strict=True):
            assert [i.probability for i in everything.failures[rule] if i.kind == kind] == expected
            assert counts[rule] == len(expected)
        chance = sum(1 - (right - left) * (bottom - top) for left, top, right, bottom in (i.box for i in placed))
        assert (counts["trials"], counts["placed"]) == (TRIALS, len(placed))
        assert counts["misplaced_by_chance"] == pytest.approx(chance)
    assert all(everything.failures[rule] for rule in RULES)  # else the above shows nothing


def test_gathering_repeats_itself_and_fewer_pictures_are_the_worst_and_the_first(judge, labelled, everything):
    few = examples.gather(judge, *labelled, per_kind=2, trials=TRIALS, seed=5)
    plain, all_of_them = (json.loads(json.dumps(examples.summary(g), allow_nan=False)) for g in (few, everything))
    assert plain["kinds"] == all_of_them["kinds"]
    for rule, entries in all_of_them["failures"].items():
        expected = [entry for kind in COMPOSITES for entry in [e for e in entries if e["kind"] == kind][:2]]
        assert plain["failures"][rule] == expected
    for kind, pairs in few.shown.items():
        for pair, other in zip(pairs, everything.shown[kind][:2], strict=True):
            assert all(torch.equal(a.heatmap, b.heatmap) for a, b in zip(pair, other, strict=True))
    other = examples.gather(judge, *labelled, per_kind=2, trials=2, seed=6)
    assert [p.names for p, _ in other.shown["side"]] != [p.names for p, _ in few.shown["side"]]


def test_what_cannot_be_shown_is_refused(judge, labelled):
    for per_kind, trials in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match=f"per_kind: got {per_kind}, expected 1 to 3"):
            examples.gather(judge, *labelled, per_kind=per_kind, trials=trials)
    with pytest.raises(ValueError, match="toy has no calibrated verdict for goals by diffusion"):
        examples.gather(judge.with_network(judge.network), *labelled)
    one = labelled[1] == 0
    with pytest.raises(ValueError, match="expected images of at least"):
        examples.gather(judge, labelled[0][one], labelled[1][one], per_kind=1, trials=2)
