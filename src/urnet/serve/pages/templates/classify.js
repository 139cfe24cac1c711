// Sends files in several requests, so that a sample may have more of them than one request may.
(() => {
  const FILES = 40, BYTES = 8 * 2 ** 20;
  const IMAGE = /\.(png|jpe?g|bmp|tiff?)$/i;
  let stop = null;
  const at = (id) => document.getElementById(id);

  async function post(path, body) {
    const answer = await fetch(window.path_prefix + "/classify" + path, { method: "POST", body, signal: stop.signal });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.detail || answer.statusText);
    return told;
  }

  function* parcels(files) {
    let parcel = [], bytes = 0;
    for (const file of files) {
      if (parcel.length && (parcel.length === FILES || bytes + file.size > BYTES)) {
        yield parcel;
        parcel = [];
        bytes = 0;
      }
      parcel.push(file);
      bytes += file.size;
    }
    if (parcel.length) yield parcel;
  }

  function say(text, wrong = false) {
    at("sending-text").textContent = text;
    at("sending-error").textContent = wrong ? text : "";
    at("sending-text").hidden = wrong;
  }

  // Pictures that are not there yet go with the sample that they are of: asked for later, they would be missed.
  function hidePictures() {
    const hidden = [...document.querySelectorAll(".cells img, .pictures img")].map((image) => [image, image.getAttribute("src")]);
    for (const [image] of hidden) image.removeAttribute("src");
    return () => hidden.forEach(([image, source]) => image.setAttribute("src", source));
  }

  async function send(found) {
    if (stop) return;
    const files = found.filter((file) => IMAGE.test(file.name) && !file.name.startsWith("."));
    at("sending").hidden = false;
    if (!files.length) return say("None of these files is a PNG, JPEG, BMP or TIFF; choose images.", true);
    stop = new AbortController();
    at("stop-sending").hidden = at("sending-bar").hidden = false;
    const others = found.length - files.length;
    const left = others ? `; ${others} other file${others > 1 ? "s" : ""} left out` : "";
    let sent = 0;
    try {
      const form = new FormData();
      form.append("sample", at("sample").value);
      if (at("pixel-size")?.value) form.append("pixel_size_um", at("pixel-size").value);
      const show = hidePictures();
      const { key } = await post("", form).catch((error) => {
        show();
        throw error;
      });
      for (const parcel of parcels(files)) {
        say(`Sending ${sent.toLocaleString()} of ${files.length.toLocaleString()} files${left}`);
        at("sending-bar").value = sent / files.length;
        const body = new FormData();
        for (const file of parcel) body.append("files", file, file.name);
        await post(`/${key}/files`, body);
        sent += parcel.length;
      }
      at("sending-bar").value = 1;
      await post(`/${key}/start`, new FormData());
      say(`${files.length.toLocaleString()} files sent${left}`);
    } catch (error) {
      const lost = error instanceof TypeError ? "The server does not answer; is it still running? Try again." : null;
      say(error.name === "AbortError" ? `Stopped; ${sent} files were sent and are not used.` : lost || error.message, true);
    } finally {
      stop = null;
      at("stop-sending").hidden = at("sending-bar").hidden = true;
      for (const input of document.querySelectorAll(".drop input[type=file]")) input.value = "";
    }
  }

  async function inside(entry) {
    if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
    const reader = entry.createReader(), found = [];
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return found;
      for (const one of some) found.push(...(await inside(one)));
    }
  }

  const inOrder = (files) => [...files].sort((a, b) => (a.webkitRelativePath || a.name).localeCompare(b.webkitRelativePath || b.name, "en", { numeric: true }));
  const drop = (event) => event.target.closest?.(".drop");
  document.addEventListener("change", (event) => {
    if (event.target.matches?.(".drop input[type=file]")) send(inOrder(event.target.files));
  });
  document.addEventListener("click", (event) => {
    if (event.target.id === "choose-files") at("files").click();
    if (event.target.id === "choose-folder") at("folder").click();
    if (event.target.id === "stop-sending") stop?.abort();
  });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"])
    document.addEventListener(kind, async (event) => {
      event.preventDefault(); // a file dropped beside would replace the page
      at("drop")?.classList.toggle("over", Boolean(drop(event)) && (kind === "dragenter" || kind === "dragover"));
      if (kind !== "drop" || !drop(event)) return;
      const dropped = [...event.dataTransfer.items].filter((item) => item.kind === "file");
      const entries = dropped.map((item) => item.webkitGetAsEntry?.() || item.getAsFile()); // gone after this event
      const found = [];
      for (const entry of entries) found.push(...(entry instanceof File ? [entry] : await inside(entry)));
      send(inOrder(found));
    });

  // Arrow keys go through the grid of cells, as through a table.
  document.addEventListener("keydown", (event) => {
    const cell = event.target.closest?.(".cells button");
    if (!cell || event.ctrlKey || event.altKey || event.metaKey) return;
    const all = [...cell.closest(".cells").querySelectorAll("button")];
    const top = all[0].getBoundingClientRect().top;
    const columns = all.filter((one) => one.getBoundingClientRect().top === top).length;
    const here = all.indexOf(cell);
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, ArrowDown: here + columns, ArrowUp: here - columns, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined || !all[to]) return;
    event.preventDefault();
    all[to].focus();
  });
})();
