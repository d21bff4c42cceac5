/* The crop of a picture: drag the square, zoom with the wheel or two fingers, or use the sliders. */
const [least, most] = [1, 4];
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const cropper = () => element.querySelector('.cropper');
const range = (name) => element.querySelector(`[data-of=${name}]`);
const now = () => ({zoom: +range('zoom').value, x: +range('x').value, y: +range('y').value});

const size = (zoom) => {  // the square and what is left beside it, as parts of the picture
  const {width, height} = cropper().dataset;
  const side = Math.min(width, height) / zoom;
  return {w: side / width, h: side / height};
};
const show = () => {
  if (!cropper()) return;
  const {zoom, x, y} = now(), {w, h} = size(zoom);
  Object.assign(element.querySelector('.whole i').style, {
    left: `${100 * (1 - w) * x}%`, top: `${100 * (1 - h) * y}%`, width: `${100 * w}%`, height: `${100 * h}%`,
  });
};
let later;
const set = ({zoom, x, y}) => {
  Object.entries({zoom: clamp(zoom, least, most), x: clamp(x, 0, 1), y: clamp(y, 0, 1)})
    .forEach(([name, value]) => { range(name).value = value; });
  show();
  clearTimeout(later);
  const index = +cropper().dataset.index;
  later = setTimeout(() => trigger('select', {index, ...now()}), 200);
};

const fingers = new Map();
const apart = () => {
  const [a, b] = [...fingers.values()];
  return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
};
element.addEventListener('pointerdown', (event) => {
  const whole = event.target.closest('.whole');
  if (!whole) return;
  event.preventDefault();
  whole.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, event);
});
element.addEventListener('pointermove', (event) => {
  const before = fingers.get(event.pointerId), whole = event.target.closest('.whole');
  if (!before || !whole) return;
  const {zoom, x, y} = now(), old = fingers.size > 1 ? apart() : 0;
  fingers.set(event.pointerId, event);
  if (old) return set({zoom: zoom * apart() / old, x, y});
  const {w, h} = size(zoom), {width, height} = whole.getBoundingClientRect();
  const moved = (by, length, part) => (part < 1 ? by / length / (1 - part) : 0);
  set({
    zoom,
    x: x + moved(event.clientX - before.clientX, width, w),
    y: y + moved(event.clientY - before.clientY, height, h),
  });
});
for (const end of ['pointerup', 'pointercancel']) {
  element.addEventListener(end, (event) => fingers.delete(event.pointerId));
}
element.addEventListener('wheel', (event) => {
  if (!event.target.closest('.whole')) return;
  event.preventDefault();
  const {zoom, x, y} = now();
  set({zoom: zoom * Math.exp(-event.deltaY / 700), x, y});
}, {passive: false});
element.addEventListener('input', (event) => { if (event.target.dataset.of) set(now()); });
watch('value', () => {  // another picture: its own numbers, not those that a hand has set
  for (const each of element.querySelectorAll('[data-of]')) each.value = each.getAttribute('value');
  show();
});
show();
