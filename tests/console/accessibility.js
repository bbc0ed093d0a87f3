// A small share of what axe checks, written out: names, labels, headings, ids, language, images, table headers.
// An expression: a function that returns the problems of the page.
() => {
  const problems = [];
  const shown = (element) => element.checkVisibility({ visibilityProperty: true });
  const all = (selector) => [...document.querySelectorAll(selector)];
  const short = (element) => element.outerHTML.slice(0, 90);
  const pointed = (element, attribute) => (element.getAttribute(attribute) || "").split(/ +/).filter(Boolean);
  const name = (element) =>
    (element.getAttribute("aria-label") ||
      pointed(element, "aria-labelledby").map((id) => document.getElementById(id)?.textContent || "").join("") ||
      element.textContent || element.title || "").trim();

  if (!document.documentElement.lang) problems.push("no language");
  if (!document.title.includes("Skerry")) problems.push("no title");
  if (all("main").length !== 1) problems.push("not one main");
  const levels = all("h1,h2,h3,h4").filter(shown).map((heading) => Number(heading.tagName[1]));
  if (levels.filter((level) => level === 1).length !== 1) problems.push("h1: " + levels);
  levels.reduce((was, now) => {
    if (now > was + 1) problems.push("heading jump " + was + " to " + now);
    return now;
  }, 0);
  for (const element of all("a[href],button")) if (shown(element) && !name(element)) problems.push("no name: " + short(element));
  for (const element of all("input,select,textarea")) {
    if (shown(element) && !element.labels?.length && !element.getAttribute("aria-label")) problems.push("no label: " + short(element));
  }
  const seen = new Set();
  for (const { id } of all("[id]")) {
    if (seen.has(id)) problems.push("id twice: " + id);
    seen.add(id);
  }
  for (const element of all("[aria-labelledby],[aria-describedby]")) {
    for (const id of [...pointed(element, "aria-labelledby"), ...pointed(element, "aria-describedby")]) {
      if (!seen.has(id)) problems.push("points nowhere: " + id);
    }
  }
  for (const image of all("svg")) {
    const named = image.getAttribute("role") === "img" && image.getAttribute("aria-label");
    if (!named && !image.closest("[aria-hidden]")) problems.push("image without a name: " + short(image));
  }
  for (const header of all("th")) if (!header.scope) problems.push("th without scope: " + short(header));
  for (const element of all("[onclick],[style]")) {
    if (!element.closest(".plot")) problems.push("inline: " + short(element));
  }
  return problems;
}
