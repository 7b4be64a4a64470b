"use strict";
// Keys, their list, and parts of pages that follow a run. Everything else is plain forms and links.

const byKey = (key) => {
  const fits = [...document.querySelectorAll("[data-key]")].filter((element) => element.dataset.key.split(" ").includes(key));
  // Of several, such as the buttons of each pair, those of the chosen item.
  return fits.find((element) => element.closest(".current")) || fits.find((element) => !element.closest("[data-item]"));
};
const byChord = (key) => document.querySelector(`[data-chord="${CSS.escape(key)}"]`);

const items = () => [...document.querySelectorAll("[data-item]")];
const choose = (item) => {
  for (const each of items()) each.classList.toggle("current", each === item);
  if (item) item.scrollIntoView({ block: "nearest" });
};
const step = (by) => {
  const all = items();
  if (!all.length) return;
  const now = all.findIndex((item) => item.classList.contains("current"));
  choose(all[Math.min(all.length - 1, Math.max(0, now < 0 ? 0 : now + by))]);
};

const act = (element) => {
  if (element.matches("input, textarea")) element.focus();
  else element.click();
};

const help = document.getElementById("help");
const showHelp = () => {
  if (help.open) { help.close(); return; }
  const rows = new Map();
  if (items().length) rows.set("j k", "Next and previous item").set("Enter", "Open the chosen item");
  for (const element of document.querySelectorAll("[data-help]")) {
    // Of a chord both keys are pressed in turn; others are alternatives.
    const keys = element.dataset.key || `g ${element.dataset.chord}`;
    if (!rows.has(keys)) rows.set(keys, element.dataset.help);
  }
  const list = document.getElementById("help-keys");
  list.replaceChildren();
  for (const [keys, text] of rows) {
    const term = document.createElement("dt");
    for (const key of keys.split(" ")) {
      const shown = document.createElement("kbd");
      shown.textContent = { ArrowLeft: "\u2190", ArrowRight: "\u2192" }[key] || key;
      term.append(shown, " ");
    }
    const description = document.createElement("dd");
    description.textContent = text;
    list.append(term, description);
  }
  help.showModal();
};

let waitsForSecond = false;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target.matches("input, textarea, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (help.open) {
    if (event.key === "?") { event.preventDefault(); help.close(); }
    return;
  }
  const found = waitsForSecond ? byChord(event.key) : byKey(event.key);
  const isFirst = !waitsForSecond && event.key === "g";
  waitsForSecond = isFirst;
  if (isFirst) return;
  if (found) { event.preventDefault(); act(found); return; }
  if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "Enter" && event.target === document.body) document.querySelector(".current [data-open]")?.click();
});
document.querySelector("[data-show-help]").addEventListener("click", showHelp);

// One answer a page: a second press before the next page is there would answer what was not read.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  if (form.dataset.sent) { event.preventDefault(); return; }
  for (const each of document.querySelectorAll('form[method="post"]')) each.dataset.sent = "yes";
});
// A page that the browser kept comes back with its forms as they were sent.
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

for (const form of document.querySelectorAll("form[data-auto]")) {
  form.addEventListener("change", () => form.requestSubmit());
}

// After an answer the next pair is chosen, so that one goes through a ranking by keys alone.
const forms = items().filter((item) => item.matches("form"));
for (const [index, form] of forms.entries()) {
  form.addEventListener("submit", () => sessionStorage.setItem("next", `${location.pathname}${location.search} ${index + 1}`));
  form.addEventListener("click", () => choose(form));
}
const [place, next] = (sessionStorage.getItem("next") || " ").split(" ");
sessionStorage.removeItem("next");
if (forms.length && place === `${location.pathname}${location.search}`) choose(forms[Math.min(Number(next), forms.length - 1)]);

for (const part of document.querySelectorAll("[data-live]")) {
  setInterval(async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(part.dataset.live);
      if (answer.ok) part.innerHTML = await answer.text();
    } catch { /* The server was stopped: what is shown stays, and the next page says so. */ }
  }, Number(part.dataset.every) * 1000);
}
