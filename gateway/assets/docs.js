// The `type` of a problem leads to its row below the operations. Read first: Swagger UI takes the fragment for one of
// its own.
const row = location.hash.length > 1 && document.getElementById(location.hash.slice(1));

// Starts Swagger UI on the shop's own document.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#api",
  deepLinking: !row,
  displayRequestDuration: true,
  docExpansion: "list",
  filter: true,
  persistAuthorization: false,
  requestSnippetsEnabled: true,
  validatorUrl: null,
});

// The operations grow while they are drawn: the row is kept in sight until the reader moves.
if (row) {
  const keep = new ResizeObserver(() => row.scrollIntoView({ block: "center" }));
  keep.observe(document.getElementById("api"));
  for (const moved of ["wheel", "touchstart", "keydown", "mousedown"]) {
    addEventListener(moved, () => keep.disconnect(), { once: true });
  }
}
