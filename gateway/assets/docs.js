// The `type` of a problem leads to its row on this page, which needs nothing else.
const row = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
document.getElementById("problems").hidden = !row;

// Starts Scalar on the shop's own documents. Everything that would ask another host is off; the page's policy allows
// none either.
if (!row) {
  Scalar.createApiReference("#api", {
    sources: [
      { title: "REST", slug: "rest", url: "/openapi.json", default: true },
      { title: "Events", slug: "events", url: "/asyncapi.json" },
    ],
    agent: { disabled: true },
    documentDownloadType: "direct",
    hideClientButton: true,
    mcp: { disabled: true },
    persistAuth: false,
    proxyUrl: "",
    showDeveloperTools: "never",
    telemetry: false,
    withDefaultFonts: false,
  });
} else {
  row.scrollIntoView({ block: "center" });
}
