//! The vocabulary of the demo products.

#[derive(Clone, Copy, Debug)]
pub struct Category {
    pub slug: &'static str,
    pub name: &'static str,
    /// Index of an earlier category.
    pub parent: Option<usize>,
}

/// A category that has products.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    /// Index into [`CATEGORIES`].
    pub category: usize,
    /// The prefix of its SKUs.
    pub code: &'static str,
    pub kinds: &'static [Kind],
    pub materials: &'static [&'static str],
    pub praises: &'static [&'static str],
}

#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub noun: &'static str,
    /// The price's range, in minor units.
    pub from: u64,
    pub to: u64,
    pub sizes: &'static [&'static str],
}

const fn root(slug: &'static str, name: &'static str) -> Category {
    Category { slug, name, parent: None }
}

const fn below(parent: usize, slug: &'static str, name: &'static str) -> Category {
    Category { slug, name, parent: Some(parent) }
}

const fn kind(noun: &'static str, from: u64, to: u64, sizes: &'static [&'static str]) -> Kind {
    Kind { noun, from, to, sizes }
}

pub const CATEGORIES: [Category; 16] = [
    root("kitchen", "Kitchen"),
    root("home", "Home"),
    root("outdoors", "Outdoors"),
    root("desk", "Desk"),
    below(0, "cookware", "Cookware"),
    below(0, "coffee-tea", "Coffee & Tea"),
    below(0, "tableware", "Tableware"),
    below(1, "bedding", "Bedding"),
    below(1, "lighting", "Lighting"),
    below(1, "bath", "Bath"),
    below(2, "camping", "Camping"),
    below(2, "cycling", "Cycling"),
    below(2, "garden", "Garden"),
    below(3, "stationery", "Stationery"),
    below(3, "audio", "Audio"),
    below(3, "computer-accessories", "Computer Accessories"),
];

pub const SERIES: &[&str] = &[
    "Alder",
    "Birkby",
    "Calder",
    "Dovetail",
    "Elmhurst",
    "Fjell",
    "Galena",
    "Harrow",
    "Isle",
    "Juniper",
    "Kestrel",
    "Larkspur",
    "Merrow",
    "Norden",
    "Orchard",
    "Pallas",
    "Quarry",
    "Rowan",
    "Saltmarsh",
    "Tarn",
    "Umber",
    "Vesper",
    "Wharf",
    "Yarrow",
];

pub const COLOURS: &[&str] = &[
    "Charcoal",
    "Chalk White",
    "Moss Green",
    "Slate Blue",
    "Terracotta",
    "Sand",
    "Mustard",
    "Style Blue",
    "Clay",
    "Sage",
    "Graphite",
    "Rust",
];

pub const CLOSINGS: &[&str] = &[
    "Two years' guarantee.",
    "Packed without plastic.",
    "Spare parts are kept in stock.",
    "Designed to be repaired.",
    "Ships within one working day.",
    "Made in small batches.",
];

pub const LEAVES: &[Leaf] = &[
    Leaf {
        category: 4,
        code: "COOK",
        kinds: &[
            kind("Frying Pan", 2_400, 11_000, &["20 cm", "24 cm", "28 cm"]),
            kind("Saucepan", 2_900, 12_500, &["1.5 l", "2 l", "3 l"]),
            kind("Casserole", 5_900, 24_900, &["3 l", "4.5 l", "6 l"]),
            kind("Roasting Tin", 1_900, 6_900, &["30 cm", "38 cm"]),
            kind("Wok", 2_900, 9_900, &["30 cm", "32 cm"]),
            kind("Chef's Knife", 2_900, 18_900, &["18 cm", "20 cm"]),
        ],
        materials: &["Cast Iron", "Carbon Steel", "Stainless", "Enamelled", "Copper"],
        praises: &[
            "Works on every hob, induction included.",
            "The handle stays cool and balances well.",
            "Goes from the hob into the oven.",
            "Gets better with every meal.",
        ],
    },
    Leaf {
        category: 5,
        code: "BREW",
        kinds: &[
            kind("Coffee Dripper", 1_200, 4_900, &["1 cup", "2 cups", "4 cups"]),
            kind("French Press", 1_900, 7_900, &["0.35 l", "1 l"]),
            kind("Hand Grinder", 3_900, 19_900, &[""]),
            kind("Teapot", 2_200, 8_900, &["0.6 l", "1.2 l"]),
            kind("Gooseneck Kettle", 3_900, 14_900, &["0.8 l", "1 l"]),
            kind("Tea Caddy", 900, 2_900, &["125 g", "250 g"]),
        ],
        materials: &["Stoneware", "Glass", "Brushed Steel", "Porcelain", "Walnut"],
        praises: &[
            "Pours a slow and even stream.",
            "Keeps its heat for the second cup.",
            "Comes apart for cleaning without tools.",
            "Quiet enough for early mornings.",
        ],
    },
    Leaf {
        category: 6,
        code: "TABL",
        kinds: &[
            kind("Mug", 700, 2_400, &["250 ml", "350 ml", "450 ml"]),
            kind("Dinner Plate", 900, 3_200, &["24 cm", "27 cm"]),
            kind("Cereal Bowl", 800, 2_600, &["14 cm", "16 cm"]),
            kind("Tumbler", 500, 1_800, &["200 ml", "330 ml"]),
            kind("Serving Board", 1_900, 6_900, &["small", "large"]),
            kind("Cutlery Set", 3_900, 18_900, &["16 pieces", "24 pieces"]),
        ],
        materials: &["Stoneware", "Porcelain", "Bone China", "Oak", "Recycled Glass"],
        praises: &[
            "Safe in the dishwasher and the microwave.",
            "Stacks neatly.",
            "Every glaze comes out a little different.",
            "Pleasant to hold.",
        ],
    },
    Leaf {
        category: 7,
        code: "BEDD",
        kinds: &[
            kind("Duvet Cover", 4_900, 17_900, &["single", "double", "king"]),
            kind("Fitted Sheet", 2_400, 7_900, &["single", "double", "king"]),
            kind("Pillowcase", 1_200, 3_900, &["50 × 75 cm", "65 × 65 cm"]),
            kind("Throw", 3_900, 14_900, &["130 × 170 cm"]),
            kind("Quilt", 7_900, 29_900, &["double", "king"]),
        ],
        materials: &["Washed Linen", "Percale", "Organic Cotton", "Merino", "Brushed Flannel"],
        praises: &[
            "Softer with every wash.",
            "Cool in summer and warm in winter.",
            "Buttons of corozo nut.",
            "Woven by a family mill.",
        ],
    },
    Leaf {
        category: 8,
        code: "LITE",
        kinds: &[
            kind("Table Lamp", 3_900, 18_900, &["small", "large"]),
            kind("Pendant Light", 5_900, 28_900, &["25 cm", "40 cm"]),
            kind("Floor Lamp", 8_900, 39_900, &[""]),
            kind("Wall Light", 3_900, 14_900, &[""]),
            kind("Reading Light", 2_900, 9_900, &["clip", "stand"]),
        ],
        materials: &["Brass", "Opal Glass", "Spun Steel", "Ash", "Paper"],
        praises: &[
            "Throws a warm light without glare.",
            "Dims down to candlelight.",
            "Takes any E27 bulb.",
            "The cable is covered with cotton.",
        ],
    },
    Leaf {
        category: 9,
        code: "BATH",
        kinds: &[
            kind("Bath Towel", 1_900, 5_900, &["70 × 140 cm", "100 × 150 cm"]),
            kind("Hand Towel", 900, 2_900, &["50 × 90 cm"]),
            kind("Bath Mat", 1_900, 5_900, &["50 × 80 cm", "60 × 100 cm"]),
            kind("Soap Dish", 700, 2_900, &[""]),
            kind("Bathrobe", 5_900, 15_900, &["S", "M", "L"]),
        ],
        materials: &["Waffle Cotton", "Terry", "Bamboo", "Stone", "Cork"],
        praises: &[
            "Dries quickly and keeps its shape.",
            "Thick, but never heavy.",
            "Kind to sensitive skin.",
            "Certified free of harmful dyes.",
        ],
    },
    Leaf {
        category: 10,
        code: "CAMP",
        kinds: &[
            kind("Two-Person Tent", 14_900, 59_900, &["2 seasons", "3 seasons"]),
            kind("Sleeping Bag", 6_900, 34_900, &["+5 °C", "0 °C", "-7 °C"]),
            kind("Sleeping Mat", 3_900, 17_900, &["regular", "long"]),
            kind("Camping Stove", 3_400, 13_900, &[""]),
            kind("Head Torch", 1_900, 8_900, &["200 lm", "400 lm"]),
            kind("Dry Bag", 900, 3_900, &["5 l", "13 l", "35 l"]),
        ],
        materials: &["Ripstop", "Ultralight", "Recycled Nylon", "Titanium", "Down"],
        praises: &[
            "Packs down to the size of a loaf.",
            "Tried through a whole winter of rain.",
            "Set up in two minutes, also in the dark.",
            "Every seam is taped.",
        ],
    },
    Leaf {
        category: 11,
        code: "BIKE",
        kinds: &[
            kind("Handlebar Bag", 2_900, 9_900, &["2 l", "5 l"]),
            kind("Pannier", 4_900, 15_900, &["14 l", "20 l"]),
            kind("Front Light", 1_900, 9_900, &["60 lx", "100 lx"]),
            kind("Floor Pump", 2_900, 8_900, &[""]),
            kind("Saddle", 3_900, 16_900, &["narrow", "wide"]),
            kind("Bell", 700, 2_900, &[""]),
        ],
        materials: &["Waxed Canvas", "Aluminium", "Leather", "Brass", "Reflective"],
        praises: &[
            "Clicks on with one hand.",
            "Holds through cobbles and winters.",
            "Fits 22 to 35 mm bars.",
            "Rated for hard rain.",
        ],
    },
    Leaf {
        category: 12,
        code: "GARD",
        kinds: &[
            kind("Hand Trowel", 900, 3_400, &[""]),
            kind("Secateurs", 1_900, 7_900, &["small", "large"]),
            kind("Watering Can", 1_900, 6_900, &["1.5 l", "5 l", "10 l"]),
            kind("Planter", 1_400, 8_900, &["20 cm", "30 cm", "45 cm"]),
            kind("Seed Tray", 600, 1_900, &["6 cells", "12 cells"]),
        ],
        materials: &["Forged Steel", "Galvanised", "Terracotta", "Ash", "Zinc"],
        praises: &[
            "Balanced for long afternoons.",
            "Stays outside all year.",
            "Sharpens with any stone.",
            "Drains well and does not tip over.",
        ],
    },
    Leaf {
        category: 13,
        code: "STAT",
        kinds: &[
            kind("Notebook", 600, 2_400, &["A6", "A5", "B5"]),
            kind("Fountain Pen", 1_900, 14_900, &["F", "M", "B"]),
            kind("Mechanical Pencil", 700, 3_900, &["0.5 mm", "0.7 mm"]),
            kind("Desk Pad", 1_900, 6_900, &["60 × 40 cm", "80 × 40 cm"]),
            kind("Letter Tray", 1_400, 4_900, &[""]),
        ],
        materials: &["Recycled", "Clothbound", "Brass", "Vegetable-Tanned", "Felt"],
        praises: &[
            "Paper of 90 g that ink does not bleed through.",
            "Lies flat at every page.",
            "Refills are sold everywhere.",
            "Ages with dignity.",
        ],
    },
    Leaf {
        category: 14,
        code: "AUDI",
        kinds: &[
            kind("Headphones", 4_900, 34_900, &["on-ear", "over-ear"]),
            kind("Earphones", 2_900, 19_900, &["wired", "wireless"]),
            kind("Bluetooth Speaker", 3_900, 24_900, &["pocket", "portable"]),
            kind("Bookshelf Speakers", 14_900, 69_900, &["pair"]),
            kind("Turntable", 19_900, 79_900, &[""]),
        ],
        materials: &["Walnut", "Matte Black", "Anodised", "Recycled", "Oak"],
        praises: &[
            "Clear voices, and a bass that does not boast.",
            "Plays for a whole working week on one charge.",
            "Cushions and cable can be replaced.",
            "Sounds right at low volume.",
        ],
    },
    Leaf {
        category: 15,
        code: "COMP",
        kinds: &[
            kind("Keyboard", 4_900, 22_900, &["60 %", "75 %", "full size"]),
            kind("Mouse", 2_400, 11_900, &["small", "large"]),
            kind("Laptop Stand", 2_900, 9_900, &[""]),
            kind("USB-C Hub", 2_900, 12_900, &["5 ports", "8 ports"]),
            kind("Laptop Sleeve", 1_900, 7_900, &["13 inch", "14 inch", "16 inch"]),
            kind("Cable", 700, 2_900, &["1 m", "2 m"]),
        ],
        materials: &["Aluminium", "Felt", "Low-Profile", "Braided", "Wireless"],
        praises: &[
            "Needs no driver on any system.",
            "Firm under the hands and quiet in a shared office.",
            "Folds flat into a bag.",
            "Tested for ten thousand insertions.",
        ],
    },
];
