'use strict';
(() => {
  const EVERY = 2000;
  const live = document.getElementById('live'), pause = document.getElementById('pause');
  if (!live) return;
  let running = true, busy = false;

  const say = (text, kind) => { live.textContent = text; live.className = kind; };
  const selecting = part => {
    const selection = getSelection();
    return selection && !selection.isCollapsed && part.contains(selection.anchorNode);
  };

  // Replaces a part by what the server says now; what is unfolded stays so, and what is in use is left alone.
  function replace(part, by) {
    const focused = part.contains(document.activeElement) && document.activeElement.closest('details');
    if (part.innerHTML === by.innerHTML || focused || selecting(part)) return;
    const open = new Set([...part.querySelectorAll('details[open]')].map(one => one.dataset.key));
    by.querySelectorAll('details').forEach(one => { one.open = open.has(one.dataset.key); });
    part.replaceChildren(...by.childNodes);
  }

  async function look() {
    if (!running || busy || document.hidden) return;
    busy = true;
    try {
      const answer = await fetch(location.href, {cache: 'no-store', redirect: 'error'});
      if (!answer.ok) throw new Error('status ' + answer.status);
      const now = new DOMParser().parseFromString(await answer.text(), 'text/html');
      document.title = now.title;
      document.querySelectorAll('[data-part]').forEach(part => {
        const by = now.getElementById(part.id);
        if (by) replace(part, by);
      });
      say('live', 'on');
    } catch (error) {
      say('no answer: ' + error.message, 'off');
    } finally {
      busy = false;
    }
  }

  pause.addEventListener('click', () => {
    running = !running;
    pause.textContent = running ? 'Pause' : 'Go on';
    say(running ? 'live' : 'paused', running ? 'on' : 'off');
    look();
  });
  live.hidden = pause.hidden = false;
  say('live', 'on');
  setInterval(look, EVERY);
})();
