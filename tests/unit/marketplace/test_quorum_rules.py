"""When a quorum is decided, whatever comes in: a majority that agrees, or none that can come about."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.rules.quorum import goes_on, majority, verdict_on, vote_of
from torg_protocol.canonical import sha256_digest
from torg_protocol.ids import Digest

VOTES = st.lists(st.sampled_from([sha256_digest(bytes([n])) for n in range(4)]), min_size=9, max_size=9)


@given(everything=VOTES, replicas=st.integers(3, 9))
def test_it_ends_with_what_most_say_and_not_later_than_needed(everything: list[Digest], replicas: int) -> None:
    votes: list[Digest] = []
    while goes_on(votes, replicas):
        votes.append(everything[len(votes)])
    assert 0 < len(votes) <= replicas
    decided = majority(votes, replicas)
    results = [verdict_on(vote, votes, replicas).result for vote in votes]
    if decided is None:
        assert set(results) == {"inconclusive"}
        rest = replicas - len(votes)
        assert all(2 * (votes.count(vote) + rest) <= replicas for vote in votes), "a majority could have come about"
    else:
        assert 2 * votes.count(decided) > replicas
        assert 2 * votes[:-1].count(decided) <= replicas, "it was decided before"
        assert [result == "passed" for result in results] == [vote == decided for vote in votes]
        assert set(results) <= {"passed", "failed"}


def test_a_vote_is_all_files_by_name_and_content_in_any_order() -> None:
    one = {"path": "a", "digest": sha256_digest(b"1"), "size_bytes": 1}
    two = {"path": "b", "digest": sha256_digest(b"2"), "size_bytes": 1}
    assert vote_of([one, two]) == vote_of([two, one])
    others = [[one], [one, {**two, "path": "c"}], [one, {**two, "digest": sha256_digest(b"3")}], []]
    assert len({vote_of(files) for files in [[one, two], *others]}) == 5
