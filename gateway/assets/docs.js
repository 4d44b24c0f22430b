// Starts Swagger UI on the shop's own document.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  displayRequestDuration: true,
  docExpansion: "list",
  filter: true,
  persistAuthorization: false,
  requestSnippetsEnabled: true,
  tryItOutEnabled: false,
  validatorUrl: null,
  // A problem's `type` leads to its place below the operations, which has moved meanwhile.
  onComplete: () => {
    const place = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (place) place.scrollIntoView();
  },
});
