/* Runs once when the page opens: keyboard and screen readers, and an address for every tab and job. */
() => {
  // A slider draws again when it is released. Keys release it as well, after a moment.
  let pressed;
  document.addEventListener('keyup', (event) => {
    const slider = event.target;
    if (!slider.matches?.('.strength input[type=range]') || event.key === 'Tab') return;
    clearTimeout(pressed);
    pressed = setTimeout(() => slider.dispatchEvent(new PointerEvent('pointerup', {bubbles: true})), 300);
  });

  // What gradio names for screen readers in other words than it shows. A picture without a caption
  // keeps its name.
  const unname = () => document
    .querySelectorAll('button.thumbnail-item[aria-label]:has(.caption-label), '
      + 'button.upload-container[aria-label], div.empty[aria-label]')
    .forEach((named) => named.removeAttribute('aria-label'));
  let waits = false;
  new MutationObserver(() => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => { waits = false; unname(); });
  }).observe(document.body, {subtree: true, childList: true});
  unname();

  // A menu closes as menus do: on Escape, and on a click beside it or on one of its buttons.
  const close = (event) => {
    const within = event.target.closest?.('.menu');
    const leaves = event.key === 'Escape' || (event.type === 'click'
      && (!within || (event.target.closest('button') && !event.target.closest('.label-wrap'))));
    if (!leaves) return;
    for (const button of document.querySelectorAll('.menu > .label-wrap.open')) {
      setTimeout(() => { button.click(); if (event.key) button.focus(); });
    }
  };
  addEventListener('keydown', close);
  addEventListener('click', close);

  const open = () => document.querySelector('[role=tab][aria-selected=true]');
  const name = (tab) => tab?.textContent.trim().toLowerCase() ?? '';
  let job = '';
  const address = () => name(open()) === 'progress' && job ? `progress/${job}` : name(open());
  const find = (wanted) =>
    [...document.querySelectorAll('[role=tab]')].find((tab) => name(tab) === wanted);
  const first = location.hash.slice(1).split('/')[0];
  let begun = !first;
  const begin = (left) => {  // gradio lays the tabs out a little later
    if (find(first)) find(first).click();
    else if (left) return setTimeout(begin, 50, left - 1);
    begun = true;
  };
  if (first) begin(100);
  const tell = () => {
    const [here, there] = [location.hash.slice(1), address()];
    if (!begun || !there || here === there) return;
    if (here.split('/')[0] === there.split('/')[0]) history.replaceState(null, '', `#${there}`);
    else location.hash = there;
  };
  new MutationObserver(tell)
    .observe(document.body, {subtree: true, attributes: true, attributeFilter: ['aria-selected']});
  addEventListener('loldu-shown', (event) => { job = event.detail; tell(); });
  addEventListener('hashchange', () => {
    const wanted = location.hash.slice(1).split('/')[0];
    if (!wanted || wanted === name(open())) return;
    find(wanted)?.click();
  });
}
