"use strict";
// Without this the page shows all batches below one another, in the system's colours.
(() => {
  const at = (id) => document.getElementById(id);
  const root = document.documentElement;

  const theme = at("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const name = () => { theme.textContent = isDark() ? "Light theme" : "Dark theme"; };
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  dark.addEventListener("change", name);
  theme.hidden = false;
  name();

  const batches = [...document.querySelectorAll(".batch")];
  if (!batches.length) return;
  const choose = at("choose"), previous = at("previous"), next = at("next");
  const suspects = at("suspects"), said = at("said");

  const show = (number) => {
    choose.value = String(number);
    batches.forEach((batch, place) => { batch.hidden = place !== number; });
    previous.disabled = number === 0;
    next.disabled = number === batches.length - 1;
    const rows = [...batches[number].querySelectorAll(".row")];
    rows.forEach((row) => { row.hidden = suspects.checked && !("suspect" in row.dataset); });
    const shown = rows.filter((row) => !row.hidden).length;
    said.textContent = `Batch ${number + 1} of ${batches.length}: ${shown} of ${rows.length} rows`;
  };
  const current = () => Number(choose.value);
  const step = (by, button, other) => {
    show(current() + by);
    if (button.disabled) other.focus();
  };
  previous.addEventListener("click", () => step(-1, previous, next));
  next.addEventListener("click", () => step(1, next, previous));
  choose.addEventListener("change", () => show(current()));
  suspects.addEventListener("change", () => show(current()));

  // A link to a partner: its row may be hidden by the filter.
  const follow = () => {
    const row = location.hash.startsWith("#b") && at(location.hash.slice(1));
    if (!row || !row.classList.contains("row")) return;
    if (row.hidden) suspects.checked = false;
    show(batches.indexOf(row.closest(".batch")));
    row.scrollIntoView();
    row.focus();
  };
  addEventListener("hashchange", follow);
  document.querySelector(".browser").hidden = false;
  show(0);
  follow();
})();
