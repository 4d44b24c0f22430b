//! Drawings of the demo shop's products as SVG. `assets/drawings.txt` has a drawing of each kind. The material and the
//! colour of a product fill it in, so that the same three words always give the same picture.

use std::fmt::Write as _;

const DRAWINGS: &str = include_str!("../../assets/drawings.txt");
/// The drawing of a kind that has none.
const ANY: &str = "any";

/// A colour as red, green and blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rgb(u8, u8, u8);

const WHITE: Rgb = Rgb(0xff, 0xff, 0xff);
const BLACK: Rgb = Rgb(0x1c, 0x1f, 0x1d);
/// The main colour of a product without a known colour.
const NEUTRAL: Rgb = Rgb(0xb9, 0xb4, 0xa7);
/// The second colour of a material without a colour of its own.
const PLAIN: Rgb = Rgb(0x6d, 0x66, 0x58);

const COLOURS: &[(&str, Rgb)] = &[
    ("charcoal", Rgb(0x4a, 0x4d, 0x52)),
    ("chalk-white", Rgb(0xee, 0xea, 0xe0)),
    ("moss-green", Rgb(0x6f, 0x83, 0x4b)),
    ("slate-blue", Rgb(0x5c, 0x74, 0x94)),
    ("terracotta", Rgb(0xc7, 0x6b, 0x4b)),
    ("sand", Rgb(0xd8, 0xc2, 0x9c)),
    ("mustard", Rgb(0xd3, 0xa0, 0x34)),
    ("style-blue", Rgb(0x3f, 0x7c, 0xa8)),
    ("clay", Rgb(0xb0, 0x80, 0x68)),
    ("sage", Rgb(0xa3, 0xb3, 0x97)),
    ("graphite", Rgb(0x5e, 0x63, 0x6b)),
    ("rust", Rgb(0xa2, 0x4e, 0x2c)),
];

/// Materials with a colour of their own, which is the main colour of the drawing. Of all others, the product's colour is.
const MATERIALS: &[(&str, Rgb)] = &[
    ("aluminium", Rgb(0xb9, 0xc1, 0xc9)),
    ("anodised", Rgb(0x9c, 0xa8, 0xb6)),
    ("ash", Rgb(0xdc, 0xc3, 0x9c)),
    ("bamboo", Rgb(0xd6, 0xba, 0x7c)),
    ("brass", Rgb(0xcf, 0xa8, 0x50)),
    ("brushed-steel", Rgb(0xa3, 0xac, 0xb5)),
    ("carbon-steel", Rgb(0x68, 0x71, 0x7c)),
    ("cast-iron", Rgb(0x46, 0x49, 0x4f)),
    ("copper", Rgb(0xc0, 0x79, 0x4c)),
    ("cork", Rgb(0xcb, 0xa9, 0x7c)),
    ("forged-steel", Rgb(0x6c, 0x74, 0x7e)),
    ("galvanised", Rgb(0xa8, 0xb2, 0xb9)),
    ("glass", Rgb(0xb5, 0xd3, 0xd8)),
    ("leather", Rgb(0x96, 0x60, 0x3d)),
    ("matte-black", Rgb(0x3c, 0x3f, 0x44)),
    ("oak", Rgb(0xc9, 0xa0, 0x70)),
    ("opal-glass", Rgb(0xe8, 0xec, 0xea)),
    ("paper", Rgb(0xec, 0xe4, 0xd0)),
    ("recycled-glass", Rgb(0xa9, 0xcb, 0xb5)),
    ("spun-steel", Rgb(0xb1, 0xb9, 0xc1)),
    ("stainless", Rgb(0xb4, 0xbc, 0xc4)),
    ("stone", Rgb(0xae, 0xa9, 0xa0)),
    ("terracotta", Rgb(0xc7, 0x6b, 0x4b)),
    ("titanium", Rgb(0x95, 0x9b, 0xa3)),
    ("vegetable-tanned", Rgb(0xb2, 0x7a, 0x4a)),
    ("walnut", Rgb(0x82, 0x5a, 0x3f)),
    ("zinc", Rgb(0x9d, 0xa7, 0xb0)),
];

impl Rgb {
    /// Mixes in `percent` of another colour.
    fn mix(self, other: Self, percent: u16) -> Self {
        let channel = |own: u8, other: u8| {
            let mixed = (u16::from(own) * (100 - percent) + u16::from(other) * percent) / 100;
            u8::try_from(mixed).unwrap_or(u8::MAX)
        };
        Self(channel(self.0, other.0), channel(self.1, other.1), channel(self.2, other.2))
    }

    fn hex(self) -> String {
        format!("#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }
}

/// Returns the drawing of a product. Words that are unknown give a neutral one.
pub fn draw(kind: &str, material: &str, colour: &str) -> String {
    let drawing = find_drawing(kind).or_else(|| find_drawing(ANY)).unwrap_or_default();
    let colour = find(COLOURS, colour);
    let (main, second) = match (find(MATERIALS, material), colour) {
        (Some(material), colour) => (material, colour.unwrap_or(PLAIN)),
        (None, Some(colour)) => (colour, PLAIN),
        (None, None) => (NEUTRAL, PLAIN),
    };
    let ground = colour.unwrap_or(NEUTRAL).mix(Rgb(0xf6, 0xf3, 0xec), 78);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 240 240\"><rect width=\"240\" height=\"240\" \
         fill=\"{}\"/><ellipse cx=\"120\" cy=\"198\" rx=\"82\" ry=\"9\" opacity=\".1\"/>",
        ground.hex()
    );
    let body = [
        ("{m}", main),
        ("{d}", main.mix(BLACK, 22)),
        ("{l}", main.mix(WHITE, 38)),
        ("{a}", second),
        ("{e}", second.mix(BLACK, 30)),
        ("{w}", WHITE),
        ("{k}", BLACK),
    ]
    .into_iter()
    .fold(drawing.to_owned(), |body, (name, colour)| body.replace(name, &colour.hex()));
    // Writing to a string does not fail.
    let _ = write!(svg, "{body}</svg>");
    svg
}

fn find(colours: &[(&str, Rgb)], word: &str) -> Option<Rgb> {
    colours.iter().find(|(name, _)| *name == word).map(|(_, colour)| *colour)
}

/// Returns the SVG of a kind.
fn find_drawing(kind: &str) -> Option<&'static str> {
    let lines = DRAWINGS.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(" = ")).find(|(name, _)| *name == kind).map(|(_, svg)| svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_words_give_the_same_picture_and_others_another() {
        let mug = draw("mug", "stoneware", "moss-green");
        assert_eq!(mug, draw("mug", "stoneware", "moss-green"));
        for other in [
            draw("mug", "stoneware", "rust"),
            draw("mug", "glass", "moss-green"),
            draw("tumbler", "stoneware", "moss-green"),
        ] {
            assert_ne!(mug, other);
        }
    }

    #[test]
    fn unknown_words_give_a_neutral_picture_and_are_not_part_of_it() {
        let neutral = draw("any", "any", "any");
        assert_eq!(draw("<script>", "\"", "{m}"), neutral);
        assert!(!neutral.contains('{') && neutral.contains(&NEUTRAL.hex()));
    }

    #[test]
    fn every_drawing_is_complete_markup_of_known_colours() {
        let kinds: Vec<_> = DRAWINGS.lines().filter_map(|line| line.split_once(" = ")).collect();
        assert!(kinds.len() > 60, "{} drawings", kinds.len());
        for (kind, svg) in kinds {
            let drawn = draw(kind, "any", "any");
            assert!(!drawn.contains(['{', '}']), "{kind}: {drawn}");
            let (opened, closed) = (
                svg.matches('<').count() - svg.matches("</").count(),
                svg.matches("/>").count() + svg.matches("</").count(),
            );
            assert_eq!(opened, closed, "{kind}");
        }
    }
}
