"""The pages in a real browser: nothing hostile runs, the table scrolls and filters, keys work, and axe-core is content.

Slow, since they need what no Python package brings: Chromium (`apt-get install chromium`) and, for axe-core, npm.
"""

import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
import uvicorn

from cluster.records.events import Event, EventLog
from cluster.viewer.runs import RunBook
from cluster.viewer.server import make_app
from tests.bench.viewer import draw_run
from tests.cluster.viewer.drawn import episode, heldout, turn, write_run
from tests.cluster.viewer.test_needs import write_needing_run
from tests.cluster.viewer.test_tools import KEY, write_tools_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]
SIZES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
ATTACK = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">\x00\u202e"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    draw_run(folder / "large", 20_000, 20, num_steps=50)
    rows = [episode(n, question=ATTACK, answer=ATTACK, reason=ATTACK, turns=[turn(ATTACK)]) for n in range(2)]
    rows += [episode(n, sample="0-8", asked=n > 0, correct=n > 1) for n in range(3)]
    evaluation = [heldout(f"heldout-{n}", kind, n > 0) for n in range(3) for kind in ("policy", "always_full")]
    files = {"episodes/step-000001": rows, "heldout/step-000001": evaluation}
    metrics = [{"step": n, "reward/accuracy": n / 9, "time/step_s": 3.0, "judge/mean_s": 1.0} for n in range(1, 9)]
    small = write_run(folder / "small <b>", files, metrics)
    write_tools_run(folder / "tools")
    write_needing_run(folder / "needs")
    EventLog(small, say=lambda _: None, warn=lambda _: None).add(Event(kind="skip", who=ATTACK, detail=ATTACK))
    return folder


@pytest.fixture(scope="module")
def address(runs):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = make_app(RunBook([runs]), token="t")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=30)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    if shutil.which("npm") is None:
        pytest.skip("no npm, which brings axe-core")
    folder = tmp_path_factory.mktemp("axe")
    done = subprocess.run(["npm", "pack", "axe-core@4"], cwd=folder, capture_output=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip("axe-core cannot be fetched")
    (packed,) = folder.glob("*.tgz")
    subprocess.run(["tar", "xzf", packed.name], cwd=folder, check=True, timeout=60)
    return (folder / "package" / "axe.min.js").read_text()


@pytest.fixture
def open_page(browser, address):
    contexts = []

    def opened(path: str, *, width: int = 1280, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.problems = []
        page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto(f"{address}/?token=t")
        page.goto(address + path)
        page.wait_for_load_state("networkidle")
        return page

    yield opened
    for context in contexts:
        context.close()


def until(page, condition: str, *, timeout_s: float = 15.0) -> None:
    """Playwright's own way evaluates in the page, which its policy forbids."""
    deadline = time.monotonic() + timeout_s
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


def paths(page, address: str) -> list[str]:
    place = "/r/small%20%3Cb%3E"
    rows = page.request.get(f"{address}{place}/episodes.json").json()["rows"]
    opened = [row["url"] for row in rows if row["set"] == "training"][:3:2]
    names = ("", "curves", "episodes", "heldout", "judge", "system", "events")
    pair = f"{place}/heldout?a=small+%3Cb%3E/step-000001&b=small+%3Cb%3E/step-000001"
    compare = "/compare?run=large&run=small+%3Cb%3E"
    groups = [path.replace("/episode?", "/group?") for path in opened]
    tools = ["/r/tools/", "/r/tools/curves", f"/r/tools/episode?{KEY}1", f"/r/tools/episode?{KEY}2"]
    needs = [
        f"/r/needs/{page}" for page in ("", "heldout", "episodes", "group?set=training&file=step-000001&sample=region")
    ]
    return ["/", compare, pair, *opened, *tools, *needs, *groups, *(f"{place}/{name}" for name in names)]


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_every_page_is_accessible_fits_and_runs_nothing_hostile(open_page, address, axe, width, scheme):
    page = open_page("/", width=width, scheme=scheme)
    for path in paths(page, address):
        page.goto(address + path)
        page.wait_for_load_state("networkidle")
        assert "taken" not in page.title(), path
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
        page.evaluate(axe)
        found = page.evaluate("axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.nodes[0].html]))")
        assert [violation for violation in found if violation[0] in ("serious", "critical")] == [], path
    assert page.problems == []


def test_the_table_scrolls_filters_and_keeps_the_filter_in_the_address(open_page):
    page = open_page("/r/large/episodes")
    page.wait_for_selector("#episodes a")
    assert page.inner_text("#total") == "20,000"
    assert page.locator("#episodes tbody tr").count() < 80, "only the rows in sight exist"
    page.evaluate("document.getElementById('episodes').scrollTop = 38 * 15000")
    until(page, "document.querySelector('#episodes tr[aria-rowindex=\"15003\"] a')")
    page.fill("[type=search]", "colour 17")
    until(page, "document.getElementById('total').textContent !== '20,000'")
    searched = page.inner_text("#total")
    page.select_option("[name=tool]", "asked")
    page.wait_for_url("**/episodes?q=colour+17&tool=asked")
    until(page, f"document.getElementById('total').textContent !== '{searched}'")
    total = page.inner_text("#total")
    page.reload()
    page.wait_for_selector("#episodes a")
    assert page.inner_text("#total") == total
    page.click("[data-sort=reward]")
    page.wait_for_url("**sort=-reward")
    assert page.problems == []


def test_keys_walk_open_search_and_help(open_page):
    page = open_page("/r/large/episodes?preset=wrong")
    page.wait_for_selector("#episodes a")
    for key in "jjjk":
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    page.wait_for_url("**/episode?**pos=1")
    page.keyboard.press("j")
    page.wait_for_url("**pos=2")
    page.keyboard.press("u")
    page.wait_for_url("**/episodes?preset=wrong")
    page.keyboard.press("/")
    page.keyboard.type("j?")
    assert page.input_value("[type=search]") == "j?", "in a field, keys are text"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.wait_for_url("**/curves")
    page.keyboard.press("j")
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("figure:first-of-type output") != ""
    page.keyboard.press("Enter")
    page.wait_for_url("**step=50")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


@pytest.mark.parametrize("width", [1280, 390])
def test_boxes_lie_where_the_region_is_and_come_along_into_the_zoom(open_page, width):
    page = open_page(f"/r/tools/episode?{KEY}1", width=width)
    picture = page.locator("[data-view=quarter] img").bounding_box()
    box = page.locator(".frame:has([data-view=quarter]) .box").bounding_box()
    for start, size in (("x", "width"), ("y", "height")):
        assert (box[start] - picture[start]) / picture[size] == pytest.approx(28 / 112, abs=0.02)
        assert box[size] / picture[size] == pytest.approx(56 / 112, abs=0.03)
    page.click("[data-view=quarter]")
    assert page.locator("#zoom .box").count() == 1
    names = []
    for _ in range(4):
        names.append(page.inner_text("#zoom output").partition(",")[0])
        page.keyboard.press("x")
    assert names == ["quarter view", "full view", "region", "region"]
    assert page.locator("#zoom .box").count() == 1, "back at the first view"
    assert page.problems == []


@pytest.mark.parametrize(("width", "is_column"), [(1280, True), (390, False)])
def test_what_an_episode_needed_has_a_column_or_stands_beside_its_tool(open_page, width, is_column):
    page = open_page("/r/needs/episodes?preset=tool&set=training", width=width)
    page.wait_for_selector("#episodes a")
    assert page.locator("td.need").all_inner_texts() == ["full", "quarter", "region"]
    assert page.locator("td.need").first.is_visible() is is_column
    told = page.locator("td.tool .told")
    assert told.all_text_contents() == [
        f", {view} needed" for view in ("the full view", "the quarter view", "a region")
    ]
    assert [each.is_visible() for each in told.all()] == [not is_column] * 3
    assert page.problems == []


def test_a_page_of_a_live_run_shows_what_was_written_since(open_page, runs):
    from cluster.status.files import Snapshot, write_snapshot
    from cluster.status.views import RunStatus

    def write(step: int) -> None:
        status = RunStatus(run="live", state="running", step=step, num_steps=9, wanted={})
        write_snapshot(live, Snapshot(status=status, written_at=time.time(), beat=step, host="h", pid=1))

    live = write_run(Path(runs) / "live", {"episodes/step-000001": [episode(0)]}, [{"step": 1, "reward/accuracy": 0.5}])
    write(1)
    page = open_page("/r/live/")
    assert "1 / 9" in page.inner_text("main")
    write_run(live, {"episodes/step-000002": [episode(0, step=2)]}, [{"step": 2, "reward/accuracy": 0.5}])
    write(2)
    until(page, "document.querySelector('main').innerText.includes('2 / 9')")
    assert page.problems == []
