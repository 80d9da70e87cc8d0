const graph = document.querySelector('.graph'), nodes = [...graph.querySelectorAll('.node')];
const paths = [...graph.querySelectorAll('path')], labels = [...graph.querySelectorAll('text')];
const light = id => {
  const made = new Set(id ? [id] : []);
  for (const one of made) for (const path of paths) if (path.dataset.to === one) made.add(path.dataset.from);
  graph.classList.toggle('lit', Boolean(id));
  for (const node of nodes) node.classList.toggle('on', made.has(node.dataset.id));
  for (const path of paths) path.classList.toggle('on', made.has(path.dataset.to));
  for (const label of labels) label.classList.toggle('on', label.dataset.to === id);
};
const rest = () => light(graph.querySelector('.node[open]')?.dataset.id);
for (const node of nodes) {
  node.addEventListener('mouseenter', () => graph.querySelector('.node[open]') || light(node.dataset.id));
  node.addEventListener('mouseleave', rest);
  node.addEventListener('focusin', () => light(node.dataset.id));
  node.addEventListener('focusout', rest);
  node.addEventListener('toggle', () => {
    if (node.open) {
      for (const other of nodes) if (other !== node) other.open = false;
      node.classList.toggle('left', node.offsetLeft + 330 > graph.offsetWidth);
      graph.style.minHeight = `${node.offsetTop + node.offsetHeight + 12}px`;
      node.scrollIntoView({block: 'nearest', inline: 'nearest'});
    }
    if (!graph.querySelector('.node[open]')) graph.style.minHeight = '';
    rest();
  });
}
const show = () => { const node = document.getElementById(location.hash.slice(1)); if (node) node.open = true; };
addEventListener('hashchange', show);
addEventListener('keydown', event => { if (event.key === 'Escape') for (const node of nodes) node.open = false; });
const main = document.querySelector('main');
const fit = () => {  // smaller than this, the text is illegible: the graph scrolls instead, with its result in view
  graph.style.zoom = 1;
  if (getComputedStyle(graph).display === 'grid') return;
  graph.style.zoom = Math.max(.7, Math.min(1, (main.clientWidth - 26) / graph.offsetWidth));
  main.scrollLeft = main.scrollWidth;
};
fit();
addEventListener('resize', fit);
show();
