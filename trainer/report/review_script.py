"""The script of the review page: keeps ticks in the browser, and saves them as a file. It asks nothing of a network."""

SCRIPT = """
"use strict";
const sheet = document.getElementById("sheet"), reviewer = document.getElementById("reviewer");
const articles = [...sheet.querySelectorAll("article")], key = sheet.dataset.key;
let kept = {reviewer: "", verdicts: {}}, stays = true;
try {
  const found = JSON.parse(localStorage.getItem(key) || "null");
  if (found && typeof found.verdicts === "object") kept = found;
} catch (error) { stays = false; }
const ofLine = line => kept.verdicts[line] || {verdict: "", note: "", time: ""};
function keep() {
  try { localStorage.setItem(key, JSON.stringify(kept)); } catch (error) { stays = false; }
  show();
}
function show() {
  let accepted = 0, rejected = 0;
  for (const article of articles) {
    const verdict = ofLine(article.dataset.line).verdict;
    article.className = verdict;
    for (const input of article.querySelectorAll("input[type=radio]")) input.checked = input.value === verdict;
    accepted += verdict === "accept"; rejected += verdict === "reject";
  }
  const left = articles.length - accepted - rejected;
  document.getElementById("count").textContent = accepted + " accepted, " + rejected + " rejected, " + left + " left" +
    (stays ? "" : ". This browser keeps nothing: save before you leave the page.");
}
function judge(article, verdict) {
  kept.verdicts[article.dataset.line] = {...ofLine(article.dataset.line), verdict, time: new Date().toISOString()};
  keep();
}
for (const article of articles) {
  const note = article.querySelector(".note");
  note.value = ofLine(article.dataset.line).note;
  note.addEventListener("input", () => {
    kept.verdicts[article.dataset.line] = {...ofLine(article.dataset.line), note: note.value};
    keep();
  });
  for (const input of article.querySelectorAll("input[type=radio]"))
    input.addEventListener("change", () => judge(article, input.value));
}
reviewer.value = kept.reviewer || "";
reviewer.addEventListener("input", () => { kept.reviewer = reviewer.value; keep(); });
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.type === "text") {
    if (event.key === "Escape" && event.target.closest("article")) event.target.closest("article").focus();
    return;
  }
  const at = articles.indexOf(document.activeElement && document.activeElement.closest("article"));
  const go = to => { if (articles[to]) { articles[to].focus(); articles[to].scrollIntoView({block: "nearest"}); } };
  if (event.key === "j") go(at + 1);
  else if (event.key === "k") go(at - 1);
  else if (at >= 0 && event.key === "a") { judge(articles[at], "accept"); go(at + 1); }
  else if (at >= 0 && event.key === "r") { judge(articles[at], "reject"); go(at + 1); }
  else if (at >= 0 && event.key === "u") judge(articles[at], "");
  else if (at >= 0 && event.key === "n") articles[at].querySelector(".note").focus();
  else return;
  event.preventDefault();
});
document.getElementById("save").addEventListener("click", () => {
  if (!reviewer.value.trim()) { reviewer.focus(); alert("Write who reviewed."); return; }
  const verdicts = articles.map(article => ({
    line: Number(article.dataset.line), digest: article.dataset.digest, ...ofLine(article.dataset.line),
  })).filter(one => one.verdict);
  const text = JSON.stringify({
    source: sheet.dataset.source, seed: Number(sheet.dataset.seed), num_sampled: articles.length,
    reviewer: reviewer.value.trim(), verdicts,
  }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = sheet.dataset.source + ".reviewed.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});
show();
"""
