"""`/docs`: Swagger UI, which shows the OpenAPI document in a browser.

The page and its scripts come from the gateway alone, so it works where there is no internet, and
its content security policy lets it load and ask nothing else. It needs no API key, as
`/openapi.json`; a key that a person enters on it is kept until the page is left.
"""

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from modelyard.contract.errors import ErrorCode, ModelyardError

router = APIRouter(prefix="/docs", include_in_schema=False)

PACKAGE = "flask_swagger_ui"
"""The package that has Swagger UI's files. Only its files are used: it is never imported."""
_MEDIA_TYPES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
_START = "start.js"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The style sheet has its icons as `data:`."""
_PAGE = f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Modelyard's HTTP API</title>
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/{_START}"></script>
</body>
</html>
"""
_SCRIPT = """\
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  queryConfigEnabled: false,
  validatorUrl: null,
});
"""
_HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
_ASSET_HEADERS = {"Cache-Control": "max-age=3600"}


@router.get("")
async def page() -> Response:
    """Return the page."""
    return Response(_PAGE, media_type="text/html", headers=_HEADERS)


@router.get("/{name}")
async def asset(name: str) -> Response:
    """Return one of the files that the page loads."""
    if name == _START:
        return Response(_SCRIPT, media_type="text/javascript", headers=_ASSET_HEADERS)
    if name not in _MEDIA_TYPES:
        raise ModelyardError(ErrorCode.NOT_FOUND)
    path, media_type = _folder() / name, _MEDIA_TYPES[name]
    return FileResponse(path, media_type=media_type, headers=_ASSET_HEADERS)


def _folder() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelyardError(ErrorCode.NOT_FOUND, f"The package {PACKAGE} is not installed.")
    return Path(spec.submodule_search_locations[0]) / "dist"
