// Small pieces: elements found and filled, figures in words. Everything goes into the page as text, never as markup.

export const $ = (id) => document.getElementById(id);

export function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = String(text);
  if (kind) made.className = kind;
  return made;
}

export function write(node, text) {
  // A live region speaks when its text is set, even to what it was.
  if (node.textContent !== text) node.textContent = text;
}

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function number(value) {
  return value === null || value === undefined ? "–" : value.toLocaleString("en-US", { maximumFractionDigits: 1 });
}

export function plural(count, one, many) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

export function fillFigures(list, rows) {
  // Written in place: a list that is made anew each second would lose a reader's place in it.
  while (list.children.length > rows.length) list.lastElementChild.remove();
  rows.forEach(([name, value, bad], index) => {
    let row = list.children[index];
    if (!row) {
      row = element("div");
      row.append(element("dt"), element("dd"));
      list.append(row);
    }
    write(row.firstElementChild, name);
    write(row.lastElementChild, value);
    row.classList.toggle("bad", Boolean(bad));
  });
}

export function fillRows(body, rows) {
  while (body.children.length > rows.length) body.lastElementChild.remove();
  rows.forEach((cells, index) => {
    let row = body.children[index];
    if (!row) {
      row = element("tr");
      cells.forEach(([, kind]) => row.append(element("td", "", kind)));
      body.append(row);
    }
    cells.forEach(([text], column) => write(row.children[column], String(text)));
  });
}
