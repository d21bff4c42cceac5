/* The divider of the canvas of Play: an ordinary slider, so that mouse, finger and keys move it. */
element.addEventListener('input', (event) => {
  element.style.setProperty('--at', `${event.target.value}%`);
});
