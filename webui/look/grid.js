/* A picture of the grid: its strength and step go into the controls. */
element.addEventListener('click', (event) => {
  const cell = event.target.closest('[data-strength]');
  if (!cell) return;
  for (const each of element.querySelectorAll('[aria-pressed]')) {
    each.setAttribute('aria-pressed', each === cell);
  }
  trigger('select', {strength: +cell.dataset.strength, step: +cell.dataset.step || null});
});
