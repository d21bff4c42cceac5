/* Choices in the story of a training: a frame, or the prompt of all frames. Arrows move along them. */
element.addEventListener('click', (event) => {
  const one = event.target.closest('[data-step], [data-prompt]');
  if (!one) return;
  const {step = null, prompt = null} = one.dataset;
  trigger('select', {step, prompt});
});
element.addEventListener('keydown', (event) => {
  const way = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  const one = way && event.target.closest('[data-step], [data-prompt]');
  if (!one) return;
  const all = [...one.parentElement.querySelectorAll(':scope > button')];
  const next = all[all.indexOf(one) + way];
  if (!next) return;
  event.preventDefault();
  next.focus();
  next.click();
});
let seen = '';
const follow = () => {  // the chosen frame is in sight, on a phone too
  const film = element.querySelector('.film'), chosen = film?.querySelector('[aria-pressed=true]');
  if (!chosen || chosen.dataset.step === seen) return;
  seen = chosen.dataset.step;
  film.scrollTo({left: chosen.offsetLeft - film.clientWidth / 2, behavior: 'smooth'});
};
watch('value', follow);
follow();
