"""The panel that takes files: sample name, file choosers and upload progress. `classify.js` uploads the files."""

from nicegui import ui

from urnet.serve.pages.components.layout import text
from urnet.serve.services import Services


def upload_panel(services: Services) -> None:
    """Create the panel."""
    takes_fields = services.model.calibration is not None and services.model.cropping is not None
    content = "crops of single cells, or fields of view" if takes_fields else "crops of single cells"
    with ui.element("section").props('id=drop aria-label="Files"').classes("panel drop"):
        with ui.element("div").classes("line"):
            with ui.element("div"):
                text("label", "Sample name").props("for=sample")
                sample = ui.element("input").props("id=sample type=text maxlength=100 autocomplete=off")
                sample.props["placeholder"] = "sample"
            if takes_fields:
                with ui.element("div"):
                    text("label", "Pixel size of fields (µm)").props("for=pixel-size")
                    pixel_size = ui.element("input").props("id=pixel-size type=number min=0.001 max=1000 step=any")
                    pixel_size.props["placeholder"] = "from the files"
            for name, label in (("files", "Choose files"), ("folder", "Choose folder")):
                text("button", label).props(f"type=button id=choose-{name}").classes(
                    "button main" if name == "files" else "button"
                )
                field = ui.element("input").props(f"type=file id={name} multiple hidden tabindex=-1")
                field.props["aria-label"] = label
                if name == "folder":
                    field.props("webkitdirectory")
                else:
                    field.props["accept"] = ".png,.jpg,.jpeg,.bmp,.tif,.tiff"
            limit = f"up to {services.settings.sample_files:,} files"
            text("p", f"or drop files here: {content}, as PNG, JPEG, BMP or TIFF, {limit}.").classes("soft grow")
        with ui.element("div").props("id=upload hidden").classes("upload"):
            ui.element("progress").props('id=upload-bar value=0 max=1 aria-label="Upload"')
            text("span", "").props("id=upload-text")
            text("span", "").props("id=upload-error role=alert").classes("wrong")
            text("button", "Stop upload").props("type=button id=stop-upload").classes("button")
