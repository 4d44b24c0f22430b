// The addresses of pictures. The gateway draws those of the demo shop from three words: kind, material and colour.

const slug = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "");

/** Returns a product's own picture, or a drawn one. A product without known attributes gets a neutral drawing. */
export function pictureOf({ image_url, name = "", attributes }) {
  if (image_url) return image_url;
  const { brand = "", material = "", colour = "" } = attributes ?? {};
  // The demo shop names a product "<brand> <material> <kind>, <size>".
  const prefix = `${brand} ${material} `;
  if (!brand || !name.startsWith(prefix)) return "/shop/pictures/any/any/any.svg";
  const [kind] = name.slice(prefix.length).split(",");
  return `/shop/pictures/${[kind, material, colour].map(slug).join("/")}.svg`;
}
