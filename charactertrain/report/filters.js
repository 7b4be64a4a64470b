"use strict";
// Only shows and hides what is on the page: without it everything is there.
(() => {
  const form = document.getElementById("filters");
  const samples = [...document.querySelectorAll(".sample[data-kind]")];
  if (form === null || samples.length === 0) return;
  const chosen = (name) => form.elements.namedItem(name).value;
  const fits = (sample) => {
    const rise = Number.parseFloat(sample.dataset.rise);
    const least = Number.parseFloat(chosen("least")) || 0;
    return (
      ["trait", "kind", "pick"].every(
        (name) => chosen(name) === "" || sample.dataset[name] === chosen(name),
      ) &&
      (least === 0 || Math.abs(rise) >= least)
    );
  };
  const apply = () => {
    const arm = chosen("arm");
    let count = 0;
    for (const sample of samples) {
      sample.hidden = !fits(sample);
      count += sample.hidden ? 0 : 1;
      for (const reply of sample.querySelectorAll(".reply")) {
        reply.hidden = arm !== "" && reply.dataset.arm !== "base" && reply.dataset.arm !== arm;
      }
      // The base's text is marked where it differs from the policy's.
      sample.classList.toggle("other-arm", arm !== "" && arm !== "policy");
    }
    for (const group of document.querySelectorAll(".picks, .trait")) {
      const inside = [...group.querySelectorAll(".sample[data-kind]")];
      const name = group.classList.contains("trait") ? "trait" : "pick";
      group.hidden =
        inside.length === 0
          ? !["", group.dataset[name]].includes(chosen(name))
          : inside.every((sample) => sample.hidden);
    }
    document.getElementById("filter-count").textContent =
      `${count} of ${samples.length} prompts shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("open-all").addEventListener("click", () => {
    const shown = samples.filter((sample) => !sample.hidden);
    const isOpen = shown.every((sample) => sample.open);
    for (const sample of shown) sample.open = !isOpen;
  });
  window.addEventListener("beforeprint", () => {
    form.reset();
    form.elements.namedItem("arm").value = "";
    apply();
    for (const folded of document.querySelectorAll("details")) folded.open = true;
  });
  form.hidden = false;
  apply();
})();
