// The view library: preact's elements as tagged templates, without a compiler.

import { h } from "preact";
import htm from "htm";

export { Fragment, render } from "preact";
export { useEffect, useId, useLayoutEffect, useRef, useState } from "preact/hooks";

export const html = htm.bind(h);
