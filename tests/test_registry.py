"""Names, suites, entry points and plugin files."""

from __future__ import annotations

import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from overopt_bench import announced
from overopt_bench.errors import UserError
from overopt_bench.plugins import load_plugin, probe_reward
from overopt_bench.registry import Registry, get_reward, get_suite, register_reward, register_suite, rewards, suites
from overopt_bench.types import Reward, Suite

HEAD = "from overopt_bench.registry import register_reward\nfrom overopt_bench.types import Reward\nimport torch\n"


def write(path: Path, body: str) -> Path:
    path.write_text(HEAD + textwrap.dedent(body))
    return path


def reward_file(path: Path, expression: str, differentiable: bool = False) -> Path:
    return write(path, f"""
        @register_reward
        class Mine(Reward):
            name = "mine"
            differentiable = {differentiable}
            def __call__(self, images, prompts):
                return {expression}
        """)  # fmt: skip


def test_one_name_may_stand_for_another_class_in_each_suite(tiny: Path) -> None:
    @register_reward
    class Everywhere(Reward):
        name = "truth"

        def __call__(self, images, prompts):
            return images

    assert rewards.get("truth", "tiny").__name__ == "Truth"
    assert rewards.get("truth", "another") is Everywhere
    assert "darkness" in rewards.names("tiny") and "darkness" not in rewards.names("another")


def test_a_taken_name_is_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match="the suite 'tiny' exists already"):

        @register_suite
        class Other(type(get_suite("tiny"))):
            pass


def test_only_subclasses_with_a_name_are_registered(clean_registry: None) -> None:
    with pytest.raises(UserError, match=r"no subclass of overopt_bench.types.Reward"):
        register_reward(Suite)
    with pytest.raises(UserError, match="needs a class attribute `name`"):
        register_reward(type("Nameless", (Reward,), {}))


def test_unknown_names_get_the_nearest_and_all(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"no reward 'darknes'; did you mean 'darkness'\? allowed: .*truth"):
        rewards.get("darknes", "tiny")
    with pytest.raises(UserError, match=r"'darkness' is not in the suite 'mini' but in tiny"):
        rewards.get("darkness", "mini")


def test_without_an_installation_the_error_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announced, "entry_points", lambda group: [])
    with pytest.raises(UserError, match=r"run `pip install -e \.`"):
        Registry[Suite]("suite", "Suite").get("mini")


def test_a_broken_entry_point_hurts_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("bad", "no_such_module_anywhere", "overopt_bench.suites"),
        EntryPoint("sd14", "overopt_bench.suites.stable_diffusion:SD14", "overopt_bench.suites"),
    ]
    monkeypatch.setattr(announced, "entry_points", lambda group: points)
    fresh: Registry[Suite] = Registry("suite", "Suite")
    assert fresh.get("sd14").name == "sd14"  # an entry point may also name a class that another registry decorated
    with pytest.raises(UserError, match="'bad' does not import: ModuleNotFoundError"):
        fresh.get("bad")
    with pytest.raises(UserError, match=r"did you mean 'sd14'\? allowed: .*; these do not import: bad"):
        fresh.get("sd15")


def test_builtin_suites_are_registered_by_entry_points() -> None:
    assert {"mini", "sd14"} <= set(suites.names())


def test_a_plugin_is_loaded_once_and_says_what_it_registered(tmp_path: Path, clean_registry: None) -> None:
    file = reward_file(tmp_path / "mine.py", "images.mean((1, 2, 3))")
    plugin = load_plugin(file)
    assert plugin.names == ("reward mine",) and plugin.path == file.resolve() and len(plugin.sha256) == 64
    assert load_plugin(file) is plugin


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("x = 1 / 0", r"does not import: bad\.py:4: ZeroDivisionError"),
        ("def f(:", r"does not import: bad\.py:4: SyntaxError"),
        ("import no_such_module_anywhere", r"does not import: bad\.py:4: ModuleNotFoundError"),
        ("raise SystemExit(0)", r"does not import: bad\.py:4: SystemExit"),
        ("x = 1", "registers nothing: decorate a class"),
    ],
)
def test_a_bad_plugin_is_one_readable_line(tmp_path: Path, clean_registry: None, body: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_plugin(write(tmp_path / "bad.py", body))
    assert "\n" not in str(caught.value)


def test_a_plugin_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such Python file"):
        load_plugin(tmp_path / "absent.py")


@pytest.mark.parametrize(
    ("expression", "differentiable", "message"),
    [
        ("images.mean()", False, r"shape \(2,\) for two images; it gave \(\)"),
        ("images.mean((1, 2, 3))[:, None]", False, r"it gave \(2, 1\)"),
        ("[0.0, 0.0]", False, "it gave list"),
        ("torch.tensor([0.0, float('nan')])", False, "finite floats"),
        ("torch.tensor([1, 2])", False, "finite floats; it gave .* of torch.int64"),
        ("images.mean((1, 2, 3)).detach()", True, "carry no gradient"),
        ("images.no_such_method()", False, "failed on two random images: AttributeError"),
    ],
)
def test_the_probe_refuses_rewards_that_cannot_work(
    tmp_path: Path, tiny: Path, expression: str, differentiable: bool, message: str
) -> None:
    load_plugin(reward_file(tmp_path / "mine.py", expression, differentiable))
    suite = get_suite("tiny")
    with pytest.raises(UserError, match=message):
        probe_reward(get_reward("mine", suite), suite, ["cat"])


def test_the_probe_accepts_a_reward_that_works(tiny: Path) -> None:
    suite = get_suite("tiny")
    probe_reward(get_reward("darkness", suite), suite, ["cat", "dog"])
