"""What cannot be measured is said in one line, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from inner import BACKENDS, WORDLEVEL, Suite, safetensors, usage_error
from simulated import CONFIG

from pytest_llmperf.gate.baseline import SCHEMA
from pytest_llmperf.machine import detect


def refusal(suite: Suite, *arguments: str) -> str:
    said = usage_error(suite.run("suites", *arguments))
    assert suite.loads == {"ref": 0, "sim": 0}, "no worker was started"
    return said


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--llm-device=mi9000", "--llm-device=mi9000: unknown device; known: mi210, *, cpu"),
        ("--llm-device=h100", "--llm-device=h100: not present; found no accelerator; leave the option out *"),
        ("--llm-backends=sim,warp", "unknown backend 'warp'; known: eager, *, ref, sim, combined as in a+b"),
        (
            "--llm-backends=compile+compile-static",
            "backend 'compile+compile-static': compile and compile-static both *",
        ),
        ("--llm-python=warp=python3", "unknown backend 'warp'; known: *"),
        ("--llm-python=sim=/no/python", "*--llm-python*: cannot ask '/no/python' what is installed there: *"),
        ("--llm-reference=warp", "unknown backend 'warp'; known: *"),
        ("--llm-model=gpt-9", "unknown model 'gpt-9'; known: *"),
        ("--llm-model=suites", "folder 'suites' has no config.json; *"),
        ("--llm-model=some/one", "model 'some/one': some/one is not in the local Hugging Face cache; *"),
        ("--llm-dtype=float16", "--llm-dtype=float16: cpu has no fast float16; it has float32, bfloat16"),
        ("--llm-prompt-lengths=600", "a prompt of 600 tokens and 8 new tokens do not fit the context of tiny, * 512 *"),
        ("--llm-max-new-tokens=497", "a prompt of 16 tokens and 497 new tokens do not fit the context of tiny, *"),
    ],
)
def test_an_option_that_cannot_be_met(
    suite: Suite, option: str, said: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(detect, "found", tuple)
    monkeypatch.setenv("HF_HUB_CACHE", str(suite.path / "hub"))
    pytest.LineMatcher([refusal(suite, option)]).fnmatch_lines("ERROR: llmperf: " + said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "*tokenizer.json is not usable (*EOF*); download it again, or update tokenizers"),
        ("{}", "*tokenizer.json is not usable (*Model missing*"),
        (json.dumps(WORDLEVEL | {"model": {"type": "New"}}), "*tokenizer.json is not usable (data did not match *"),
        (json.dumps(WORDLEVEL).replace('"[UNK]": 0, ', ""), "*tokenizer.json is not usable (WordLevel error: *"),
        (json.dumps(WORDLEVEL).replace('"and": 3', '"and": 9999'), "*it is another model's tokenizer; *"),
    ],
    ids=["cut", "empty", "newer", "incomplete", "another model's"],
)
def test_a_tokenizer_that_cannot_be_used(suite: Suite, content: str, said: str) -> None:
    (suite.path / "tiny" / "tokenizer.json").write_text(content)
    pytest.LineMatcher([refusal(suite)]).fnmatch_lines("ERROR: llmperf: " + said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "lama"}, "model tiny: *no causal language model of the type 'lama' (is 'llama' meant?); no *"),
        ({"model_type": "mine", "auto_map": {"AutoModel": "x.Y"}}, "model tiny: * code of its own (auto_map), *"),
        ({}, "model tiny: */tiny has no weights (model.safetensors, say); download it again, *; no backend *"),
    ],
    ids=["unknown type", "own code", "no weights"],
)
def test_a_model_that_no_engine_loads(suite: Suite, changes: dict[str, object], said: str) -> None:
    suite.model(**changes)
    for backends in ("eager,sdpa", "vllm,eager+compile"):
        line = refusal(suite, f"--llm-backends={backends}", "--llm-reference=eager")
        pytest.LineMatcher([line]).fnmatch_lines("ERROR: llmperf: " + said)
        assert "trust_remote_code" not in line


def test_a_checkpoint_without_a_layer_is_told_before_any_engine_has_it(suite: Suite) -> None:
    suite.model(num_hidden_layers=3)
    hidden, inner, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["hidden_size"] // 2
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    around = {"embed_tokens": (CONFIG["vocab_size"], hidden), "norm": (hidden,), "head": (CONFIG["vocab_size"], hidden)}
    held = around | {
        f"model.layers.{number}.{name}.weight": shape for number in (0, 2) for name, shape in layer.items()
    }
    (suite.path / "tiny" / "model.safetensors").write_bytes(safetensors(held))
    for backends in ("vllm", "eager,sdpa"):
        line = refusal(suite, f"--llm-backends={backends}", "--llm-reference=eager")
        assert "parameters: it lacks 9 tensors (model.layers.1.input_layernorm.weight, model.layers.1.mlp." in line


def test_an_engine_that_cannot_be_loaded_is_told_once(suite: Suite) -> None:
    extra = "from pytest_llmperf.models import loading\n\n\ndef lost():\n    with loading('Sim', 'tiny'):\n"
    extra += "        raise ValueError('no such thing as:\\n' + 'a kind, ' * 9999 + '\\nuse trust_remote_code')\n"
    suite.backends(sim="lost()", extra=extra)
    result = suite.run("suites", "--llm-backends=sim", "-rf")
    first, *others = [line for line in result.outlines if line.startswith("FAILED ")]
    start = "ModelError: Sim cannot load tiny (ValueError: no such thing as: a kind, a kind,"
    assert start in first
    assert first.endswith("...); load it with Sim alone to see the whole error")
    name = first.split()[1]
    assert [line.partition(" - ")[2] for line in others] == [f"Failed: not run, for the reason that {name} shows"] * 3
    assert len(first) < 500
    assert "Traceback" not in result.stdout.str()
    assert suite.loads["sim"] == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "bert"}, "*config.json: bert is an encoder, whose tokens see those after them; *"),
        ({"model_type": None}, "*config.json: not the configuration of a causal language model (it states no *"),
        ({"quantization_config": {"bits": 4}}, "*config.json has a quantization_config, so random weights would *"),
    ],
    ids=["encoder", "no type", "quantized"],
)
def test_a_model_that_cannot_be_measured(suite: Suite, changes: dict[str, object], said: str) -> None:
    suite.model(**changes)
    line = refusal(suite, "--llm-random-weights")
    pytest.LineMatcher([line]).fnmatch_lines("ERROR: llmperf: " + said)
    assert len(line) < 400


def test_weights_that_are_not_whole(suite: Suite) -> None:
    (suite.path / "tiny" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "model.safetensors is a pointer of Git LFS, not the file itself; run 'git lfs pull' in " in refusal(suite)


def test_a_prompt_and_its_tokens_may_fill_the_context(suite: Suite) -> None:
    suite.run("suites", "--collect-only", "--llm-max-new-tokens=496").assert_outcomes()


BAD = [
    ("update-baselines", "yes", "'yes' is not all, new, slower or add; put paths before the option"),
    ("dtype", "int3", "unknown dtype 'int3'; known: float32, float16, bfloat16"),
    ("batch-sizes", "0", "0 is not a positive whole number"),
    ("batch-sizes", "1,-4", "-4 is not a positive whole number"),
    ("batch-sizes", "1,,4", "'' is not a whole number"),
    ("prompt-lengths", "many", "'many' is not a whole number"),
    ("prompt-lengths", "1.5", "'1.5' is not a whole number"),
    ("max-new-tokens", "1", "at least 2 new tokens are needed, because TPOT is the time between tokens"),
    ("max-new-tokens", "0", "0 is not a positive whole number"),
    ("invocations", "0", "0 is not a positive whole number"),
    ("seed", "-1", "'-1' is not a whole number of at most 18 digits"),
    ("seed", "new", "'new' is not a whole number of at most 18 digits"),
    ("invocations", "2", "2 processes do not show how much processes differ; at least 3 are needed"),
    ("max-regression", "-5%", "'-5%' is not a fraction above 0, as in '0.05' or '5%'"),
    ("max-regression", "nan", "'nan' is not a fraction above 0, as in '0.05' or '5%'"),
    ("max-regression", "5", "'5' would allow a slowdown of 500%; write '5%' or '0.05'"),
    ("timeout", "inf", "'inf' is not a positive number of seconds"),
    ("timeout", "soon", "'soon' is not a positive number of seconds"),
    ("backends", ",", "expected at least one name, as in 'eager,sdpa'"),
    (
        "python",
        "=/opt/python",
        "'=/opt/python' is not a list of backend=interpreter, as in 'vllm=/opt/vllm/bin/python'",
    ),
    ("python", "sim=a,sim=b", "'sim=a,sim=b' names sim twice"),
    ("python", "a,sim=b,c", "'a,sim=b,c' names every backend twice"),
]


@pytest.mark.parametrize(("name", "text", "said"), BAD)
def test_a_malformed_option(suite: Suite, name: str, text: str, said: str) -> None:
    line = refusal(suite, f"--llm-{name}={text}")
    assert line.endswith(f"argument --llm-{name}: {said}")


@pytest.mark.parametrize(
    ("name", "text", "said"), [*BAD, ("strict", "maybe", "'maybe' is not a boolean: write true or false")]
)
def test_a_malformed_ini_value(suite: Suite, name: str, text: str, said: str) -> None:
    ini = f"llm_{name.replace('-', '_')}"
    suite.ini(**{ini: text})
    assert refusal(suite) == f"ERROR: {ini} (ini): {said}"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("*/tpot", "'*/tpot' is not 'pattern = fraction', as in '*/vllm/*/tpot = 3%'"),
        ("= 3%", "'= 3%' is not 'pattern = fraction', as in '*/vllm/*/tpot = 3%'"),
        ("*/tpot = 3", "'*/tpot = 3': '3' would allow a slowdown of 300%; write '3%' or '0.03'"),
        ("*/tpot = fast", "'*/tpot = fast': 'fast' is not a fraction above 0, as in '0.05' or '5%'"),
        ("*/tpot = 3%\n    */tpot = 4%", "'*/tpot' is stated twice"),
    ],
)
def test_a_malformed_table_of_tolerances(suite: Suite, lines: str, said: str) -> None:
    suite.ini(llm_tolerances="\n    " + lines)
    assert refusal(suite) == f"ERROR: llm_tolerances (ini): {said}"


def test_a_path_is_not_taken_for_which_baselines_to_update(suite: Suite) -> None:
    said = usage_error(suite.run("--llm-update-baselines", "suites/"))
    assert "'suites/' is not all, new, slower or add; put paths before the option" in said
    assert suite.loads == {"ref": 0, "sim": 0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "*tiny/config.json: not the configuration of a causal language model (*"),
        ("[]", "*tiny/config.json: not the configuration of a causal language model (*"),
        (
            '{"model_type": "llama", "vocab_size": null}',
            "*not the configuration of a causal language model (*vocab_size*",
        ),
        ('{"model_type": "llama", "hidden_size": "wide"}', "*not the configuration of a causal language model (*"),
    ],
    ids=["empty", "a list", "incomplete", "not a number"],
)
def test_a_model_whose_configuration_is_none(suite: Suite, text: str, said: str) -> None:
    (suite.path / "tiny" / "config.json").write_text(text)
    pytest.LineMatcher([refusal(suite)]).fnmatch_lines(said)


# Backends


@pytest.mark.parametrize(
    ("backends", "said"),
    [
        (f"[{BACKENDS}, Backend('sim', load_ref)]", "backend 'sim' is registered twice; choose another name"),
        (f"[{BACKENDS}, Backend('eager', load_ref)]", "backend 'eager' is registered twice; choose another name"),
        (f"[{BACKENDS}, Backend('odd', lambda spec: None)]", "backend 'odd': load must be a function or class at *"),
        (f"[{BACKENDS}, Backend('odd', print)]", "backend 'odd': load must be a function or class at *"),
    ],
    ids=["twice", "built in", "lambda", "builtin function"],
)
def test_a_backend_that_cannot_be_registered(suite: Suite, backends: str, said: str) -> None:
    suite.backends(backends=backends)
    pytest.LineMatcher([refusal(suite)]).fnmatch_lines("ERROR: llmperf: " + said)


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("backends=['warp']", "*unknown backend 'warp'; known: *"),
        ("backends='sim'", "*test_it*backends*'sim'*"),
        ("batch_sizes=[0]", "*test_it*batch_sizes*"),
        ("batch_sizes=4", "*test_it*batch_sizes*"),
        ("prompt_lengths=['long']", "*test_it*prompt_lengths*"),
        ("prompt_lengths=[600]", "*do not fit the context of tiny*"),
        ("max_new_tokens=1", "*test_it*max_new_tokens*"),
        ("max_regression='5%'", "*test_it*max_regression*"),
        ("max_regression=-0.1", "*test_it*max_regression*"),
        ("max_regression=8.0", "*test_it*max_regression*a fraction such as 0.05"),
        ("devices=['mi21O']", "*test_it*devices name mi21O; known: *mi210*"),
        ("devices=['nvidia']", "*test_it*devices name nvidia; known: *mi210*"),
        ("devices='cpu'", "*test_it*devices*"),
    ],
)
def test_a_marker_that_cannot_be_met(suite: Suite, marker: str, said: str) -> None:
    suite.test(f"import pytest\n@pytest.mark.llm({marker})\ndef test_it(llm_perf):\n    llm_perf.gate('tpot')")
    line = usage_error(suite.run("test_it.py"))
    pytest.LineMatcher([line]).fnmatch_lines(said)
    assert suite.loads == {"ref": 0, "sim": 0}


# The baseline file


def truncated(text: str) -> str:
    return text[: len(text) // 2]


def newer(text: str) -> str:
    return text.replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}')


def other_device(text: str) -> str:
    return text.replace('"device": "cpu"', '"device": "h100"')


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncated, "*tiny.json: is not JSON (*); restore it from version control*"),
        (lambda text: "", "*tiny.json: is not JSON (*); restore it from version control*"),
        (lambda text: "[]", "*tiny.json: is not a JSON object with a schema number; *"),
        (newer, f"*tiny.json: has schema {SCHEMA + 1}, newer than this version's {SCHEMA}; upgrade pytest-llmperf"),
        (other_device, "*tiny.json: holds device 'h100', not 'cpu'; *"),
        (lambda text: text.replace("0.005", "-0.005"), "*tiny.json: *figures are positive and finite*"),
    ],
    ids=["truncated", "empty", "a list", "newer", "another device", "negative"],
)
@pytest.mark.parametrize("flag", [(), ("--llm-update-baselines",)], ids=["gate", "update"])
def test_a_spoilt_baseline_is_refused_and_left_as_it_is(
    suite: Suite, spoil: Callable[[str], str], said: str, flag: tuple[str, ...]
) -> None:
    suite.record({"sim/tpot": 0.005})
    spoilt = spoil(suite.baseline.read_text())
    suite.baseline.write_text(spoilt)
    pytest.LineMatcher([refusal(suite, *flag)]).fnmatch_lines("ERROR: llmperf: " + said)
    assert suite.baseline.read_text() == spoilt


def test_a_folder_that_cannot_be_written_is_refused_before_an_hour_is_spent(suite: Suite) -> None:
    (suite.path / "file").touch()
    said = refusal(suite, "--llm-update-baselines", "--llm-baseline-dir=file/baselines")
    pytest.LineMatcher([said]).fnmatch_lines("ERROR: llmperf: *file/baselines/cpu*")


def test_a_results_file_that_cannot_be_written_is_refused_likewise(suite: Suite) -> None:
    (suite.path / "file").touch()
    pytest.LineMatcher([refusal(suite, "--llm-results=file/raw.json")]).fnmatch_lines(
        "ERROR: llmperf: */file/raw.json: cannot be written (*); choose another place, or change it"
    )


@pytest.mark.parametrize("option", ["--llm-results=taken.md", "--llm-report=report.html,taken.md"])
def test_so_is_a_file_in_whose_place_a_folder_is(suite: Suite, option: str) -> None:
    (suite.path / "taken.md").mkdir()
    pytest.LineMatcher([refusal(suite, option)]).fnmatch_lines(
        "ERROR: llmperf: */taken.md: cannot be written (*Is a directory*"
    )


def test_an_update_that_fails_leaves_the_old_file(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.record({"sim/tpot": 0.001})
    before = suite.baseline.read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pytest_llmperf.files.os.fsync", full)
    result = suite.decode("--llm-update-baselines")
    assert result.ret == 1, "asked to write, and nothing was written"
    said = " ".join(result.stdout.str().split())
    assert f"ERROR: {suite.baseline}: cannot be written ([Errno 28] No space left on device)" in said
    assert suite.baseline.read_bytes() == before
    assert [file.name for file in suite.baseline.parent.iterdir()] == ["tiny.json"]


def test_a_good_baseline_is_json_that_others_can_read(suite: Suite) -> None:
    suite.record({"sim/tpot": 0.005})
    assert json.loads(suite.baseline.read_text())["schema"] == SCHEMA


def test_what_was_deselected_cannot_stop_the_others(suite: Suite) -> None:
    suite.test("def test_plain():\n    pass\n\ndef test_it(llm_perf):\n    llm_perf.gate('tpot')")
    result = suite.run("test_it.py", "-k", "plain", "--llm-device=mi9000")
    assert result.ret == 0
    result.assert_outcomes(passed=1, deselected=1)
