"""`ETag`, `If-Match` and `If-None-Match` of catalog entries; pages of lists by name."""

import asyncio

import pytest

from modelyard.client.aio import AsyncModelyard
from modelyard.contract.messages import EngineFacts, HostOnline
from tests.support.gateway import Json, ServedGateway, problem

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.parametrize("shelf", ["models", "datasets"]),
]

SPECS: dict[str, Json] = {
    "models": {"image": "a/b:1", "profile": "batch", "resources": {"memory": "512m"}},
    "datasets": {"volume": "v"},
}
OTHER: dict[str, Json] = {
    "models": {"image": "a/b:2", "profile": "batch"},
    "datasets": {"volume": "w"},
}


async def stored(served: ServedGateway, path: str, spec: Json) -> str:
    """Store an entry; return its entity tag."""
    answer = await served.client.put(path, json=spec)
    assert answer.status_code in (200, 201), answer.text
    return answer.headers["ETag"]


async def test_the_tag_of_an_entry_changes_with_it(shared: ServedGateway, shelf: str) -> None:
    path = f"/v1/{shelf}/tagged"
    tag = await stored(shared, path, SPECS[shelf])
    assert tag.startswith('"')
    read = await shared.client.get(path)
    assert read.headers["ETag"] == tag
    assert await stored(shared, path, SPECS[shelf]) == tag
    assert await stored(shared, path, OTHER[shelf]) != tag
    assert (await shared.client.get(path)).headers["ETag"] != tag


async def test_what_a_client_has_already_is_not_sent_again(
    shared: ServedGateway, shelf: str
) -> None:
    path = f"/v1/{shelf}/cached"
    tag = await stored(shared, path, SPECS[shelf])
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = await shared.client.get(path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["ETag"] == tag
    await stored(shared, path, OTHER[shelf])
    answer = await shared.client.get(path, headers={"If-None-Match": tag})
    assert answer.status_code == 200
    assert answer.headers["ETag"] != tag
    gone = await shared.client.get(path, headers={"If-Match": tag})
    assert (gone.status_code, problem(gone)["code"]) == (412, "precondition_failed")


async def test_an_entry_that_has_changed_is_neither_replaced_nor_deleted(
    shared: ServedGateway, shelf: str
) -> None:
    path = f"/v1/{shelf}/guarded"
    old = {"If-Match": await stored(shared, path, SPECS[shelf])}
    new = {"If-Match": await stored(shared, path, OTHER[shelf])}
    for refused in (
        await shared.client.put(path, json=SPECS[shelf], headers=old),
        await shared.client.delete(path, headers=old),
        await shared.client.put(
            path, json=SPECS[shelf], headers={"If-Match": f"W/{new['If-Match']}"}
        ),
    ):
        assert (refused.status_code, problem(refused)["code"]) == (412, "precondition_failed")
    assert (await shared.client.get(path)).headers["ETag"] == new["If-Match"]
    replaced = await shared.client.put(path, json=SPECS[shelf], headers=new)
    assert (replaced.status_code, replaced.headers["ETag"]) == (200, old["If-Match"])
    assert (await shared.client.delete(path, headers=old)).status_code == 204
    for headers in (old, {"If-Match": "*"}):
        refused = await shared.client.put(path, json=SPECS[shelf], headers=headers)
        assert refused.status_code == 412
        assert (await shared.client.delete(path, headers=headers)).status_code == 412


async def test_of_all_who_create_an_entry_at_once_one_does(
    shared: ServedGateway, shelf: str
) -> None:
    path = f"/v1/{shelf}/raced"
    puts = [
        shared.client.put(path, json=SPECS[shelf], headers={"If-None-Match": "*"})
        for _ in range(12)
    ]
    answers = await asyncio.gather(*puts)
    assert sorted(one.status_code for one in answers) == [201] + [412] * 11


async def test_of_all_who_change_an_entry_that_they_have_seen_one_does(
    shared: ServedGateway, shelf: str
) -> None:
    path = f"/v1/{shelf}/contended"
    tag = await stored(shared, path, SPECS[shelf])
    bodies = [
        OTHER[shelf] | ({"image": f"a/b:{n}"} if shelf == "models" else {"volume": f"v{n}"})
        for n in range(12)
    ]
    puts = [shared.client.put(path, json=one, headers={"If-Match": tag}) for one in bodies]
    answers = await asyncio.gather(*puts)
    assert sorted(one.status_code for one in answers) == [200] + [412] * 11
    (won,) = [one for one in answers if one.status_code == 200]
    assert (await shared.client.get(path)).json() == won.json()


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize("value", ["abc", '"a', '*, "a"', '"a" "b"', ""])
async def test_a_tag_that_is_none_is_refused(
    shared: ServedGateway, shelf: str, header: str, value: str
) -> None:
    answer = await shared.client.get(f"/v1/{shelf}/any", headers={header: value})
    assert answer.status_code == 422
    assert problem(answer)["errors"][0]["header"] == header


# --- pages ---


async def test_pages_by_name_hold_every_entry_once(shared: ServedGateway, shelf: str) -> None:
    names = [f"p{n}" for n in range(5)]
    for name in names:
        await stored(shared, f"/v1/{shelf}/{name}", SPECS[shelf])
    found = list[str]()
    path = f"/v1/{shelf}?limit=2"
    while path:
        answer = await shared.client.get(path)
        content = answer.json()
        found += [one["name"] for one in content[shelf]]
        path = answer.links["next"]["url"] if content["next"] else ""
    assert found == sorted(found)
    assert [name for name in found if name in names] == names


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=x",
        "state=x",
        "limit=1&limit=2",
        "cursor=!",
        "cursor=a/b",
        "cursor=" + "a" * 129,
    ],
)
async def test_a_page_that_is_none_is_refused(
    shared: ServedGateway, shelf: str, query: str
) -> None:
    for path in (f"/v1/{shelf}", "/v1/hosts"):
        answer = await shared.client.get(f"{path}?{query}")
        assert answer.status_code == 422, answer.text
        assert problem(answer)["errors"][0]["parameter"]


async def test_a_client_reads_lists_of_more_than_a_page_whole(
    shared: ServedGateway, shelf: str
) -> None:
    names = {f"{shelf}-{n:03}" for n in range(230)}
    entries = getattr(shared.store, shelf)
    spec = entries._kind.model_validate(SPECS[shelf] | {"name": "x"})
    online = HostOnline(slots=1, engine=EngineFacts(version="29", api_version="1.44"))
    for name in names:
        await entries.put(spec.model_copy(update={"name": name}))
        await shared.store.hosts.come_online(name, "i", online)
    async with AsyncModelyard(shared.url) as yard:
        found = [one.name for one in await getattr(yard, shelf)()]
        hosts = [one.host_id for one in await yard.hosts()]
    for listed in (found, hosts):
        assert names <= set(listed)
        assert listed == sorted(listed)
        assert len(listed) == len(set(listed))
