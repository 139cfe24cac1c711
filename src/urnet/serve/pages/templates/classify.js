// Uploads the files of a sample in several requests, because a request may hold fewer files than a sample.
(() => {
  const MAX_FILES = 40, MAX_BYTES = 8 * 2 ** 20;
  const IMAGE = /\.(png|jpe?g|bmp|tiff?)$/i;
  let abort = null;
  const element = (id) => document.getElementById(id);
  const plural = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

  async function post(path, body) {
    const response = await fetch(window.path_prefix + "/classify" + path, { method: "POST", body, signal: abort.signal });
    const content = await response.json();
    if (!response.ok) throw new Error(content.detail || response.statusText);
    return content;
  }

  function* split(files) {
    let batch = [], bytes = 0;
    for (const file of files) {
      if (batch.length && (batch.length === MAX_FILES || bytes + file.size > MAX_BYTES)) {
        yield batch;
        batch = [];
        bytes = 0;
      }
      batch.push(file);
      bytes += file.size;
    }
    if (batch.length) yield batch;
  }

  function show(message, isError = false) {
    element("upload-text").textContent = message;
    element("upload-error").textContent = isError ? message : "";
    element("upload-text").hidden = isError;
  }

  // Stop loading pictures of the old sample, which a new sample deletes. Returns a function that loads them after all.
  function hidePictures() {
    const hidden = [...document.querySelectorAll(".cells img, .pictures img")].map((image) => [image, image.getAttribute("src")]);
    for (const [image] of hidden) image.removeAttribute("src");
    return () => hidden.forEach(([image, source]) => image.setAttribute("src", source));
  }

  async function upload(chosen) {
    if (abort) return;
    const files = chosen.filter((file) => IMAGE.test(file.name) && !file.name.startsWith("."));
    element("upload").hidden = false;
    if (!files.length) return show("None of these files is a PNG, JPEG, BMP or TIFF image. Choose image files.", true);
    abort = new AbortController();
    element("stop-upload").hidden = element("upload-bar").hidden = false;
    const others = chosen.length - files.length;
    const skipped = others ? `, ${plural(others, "other file")} skipped` : "";
    let sent = 0;
    try {
      const form = new FormData();
      form.append("sample", element("sample").value);
      if (element("pixel-size")?.value) form.append("pixel_size_um", element("pixel-size").value);
      const restorePictures = hidePictures();
      const { key } = await post("", form).catch((error) => {
        restorePictures();
        throw error;
      });
      for (const batch of split(files)) {
        show(`Uploading: ${sent.toLocaleString("en")} of ${plural(files.length, "file")}${skipped}`);
        element("upload-bar").value = sent / files.length;
        const body = new FormData();
        for (const file of batch) body.append("files", file, file.name);
        await post(`/${key}/files`, body);
        sent += batch.length;
      }
      element("upload-bar").value = 1;
      await post(`/${key}/start`, new FormData());
      show(`${plural(files.length, "file")} uploaded${skipped}`);
    } catch (error) {
      const offline = error instanceof TypeError ? "The server does not answer. Check that it is running, then try again." : null;
      const stopped = error.name === "AbortError" ? `Upload stopped; ${plural(sent, "uploaded file")} discarded.` : null;
      show(stopped || offline || error.message, true);
    } finally {
      abort = null;
      element("stop-upload").hidden = element("upload-bar").hidden = true;
      for (const input of document.querySelectorAll(".drop input[type=file]")) input.value = "";
    }
  }

  async function listFiles(entry) {
    if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
    const reader = entry.createReader(), files = [];
    for (;;) {
      const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!entries.length) return files;
      for (const child of entries) files.push(...(await listFiles(child)));
    }
  }

  const path = (file) => file.webkitRelativePath || file.name;
  const sorted = (files) => [...files].sort((a, b) => path(a).localeCompare(path(b), "en", { numeric: true }));
  const panel = (event) => event.target.closest?.(".drop");
  document.addEventListener("change", (event) => {
    if (event.target.matches?.(".drop input[type=file]")) upload(sorted(event.target.files));
  });
  document.addEventListener("click", (event) => {
    if (event.target.id === "choose-files") element("files").click();
    if (event.target.id === "choose-folder") element("folder").click();
    if (event.target.id === "stop-upload") abort?.abort();
  });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"])
    document.addEventListener(kind, async (event) => {
      event.preventDefault(); // a file dropped outside the panel would replace the page
      element("drop")?.classList.toggle("over", Boolean(panel(event)) && (kind === "dragenter" || kind === "dragover"));
      if (kind !== "drop" || !panel(event)) return;
      const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
      const entries = items.map((item) => item.webkitGetAsEntry?.() || item.getAsFile()); // not available after this event
      const files = [];
      for (const entry of entries) files.push(...(entry instanceof File ? [entry] : await listFiles(entry)));
      upload(sorted(files));
    });

  // Arrow keys move through the grid of cells.
  document.addEventListener("keydown", (event) => {
    const cell = event.target.closest?.(".cells button");
    if (!cell || event.ctrlKey || event.altKey || event.metaKey) return;
    const all = [...cell.closest(".cells").querySelectorAll("button")];
    const top = all[0].getBoundingClientRect().top;
    const columns = all.filter((other) => other.getBoundingClientRect().top === top).length;
    const index = all.indexOf(cell);
    const target = { ArrowRight: index + 1, ArrowLeft: index - 1, ArrowDown: index + columns, ArrowUp: index - columns, Home: 0, End: all.length - 1 }[event.key];
    if (target === undefined || !all[target]) return;
    event.preventDefault();
    all[target].focus();
  });
})();
