//! The inverted index: what is indexed of a product, and how documents come into it and go. It lies in memory and is
//! built from PostgreSQL; a search reads an immutable [`Snapshot`].
//!
//! Documents lie in each segment by descending id, so that the first ones of a set are its newest products, however
//! segments were merged.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use tantivy::{
    Index, IndexReader, IndexSettings, IndexSortByField, IndexWriter, Order, ReloadPolicy, TantivyDocument,
    Term,
    index::SegmentId,
    indexer::IndexWriterOptions,
    schema::{FAST, Field, INDEXED, IndexRecordOption, Schema, TextFieldIndexing, TextOptions},
};

use super::{
    fold::{index_terms, normalize, squeeze},
    segment::Segment,
    tree::Tree,
};

/// What the writer gathers before it closes a segment, the least that tantivy allows. Bytes.
const ARENA_BYTES: usize = 15_000_000;

/// What the search knows of an active product.
#[derive(Clone, Debug, Hash)]
pub struct Entry {
    pub id: i64,
    pub sku: String,
    pub name: String,
    /// What `sort=name` goes by.
    pub name_key: String,
    pub description: String,
    pub category_id: Option<i64>,
    pub price: i64,
    pub in_stock: bool,
    /// Microseconds since the Unix epoch.
    pub created_at: i64,
}

impl Entry {
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// The fields of a document. Their terms have no frequencies and no positions: what ranks does not depend on them.
#[derive(Clone, Copy, Debug)]
pub struct Fields {
    pub id: Field,
    /// The SKU as it is written, behind `=`, and without its separators.
    pub sku: Field,
    /// The whole name, normalized.
    pub title: Field,
    /// Words of the name.
    pub name: Field,
    /// Words of the SKU, apart from those of names: there are as many as products.
    pub code: Field,
    /// Words of the description.
    pub text: Field,
    pub category: Field,
    pub in_stock: Field,
    price: Field,
    created: Field,
    name_key: Field,
}

/// The names of the fields with columns.
pub mod column {
    pub const ID: &str = "id";
    pub const CATEGORY: &str = "category";
    pub const PRICE: &str = "price";
    pub const CREATED: &str = "created";
    pub const NAME_KEY: &str = "name_key";
}

impl Fields {
    fn new() -> (Self, Schema) {
        let terms = TextOptions::default().set_indexing_options(
            TextFieldIndexing::default()
                .set_tokenizer("raw")
                .set_index_option(IndexRecordOption::Basic)
                .set_fieldnorms(false),
        );
        let mut schema = Schema::builder();
        let fields = Self {
            id: schema.add_i64_field(column::ID, INDEXED | FAST),
            sku: schema.add_text_field("sku", terms.clone()),
            title: schema.add_text_field("title", terms.clone()),
            name: schema.add_text_field("name", terms.clone()),
            code: schema.add_text_field("code", terms.clone()),
            text: schema.add_text_field("text", terms),
            category: schema.add_i64_field(column::CATEGORY, INDEXED | FAST),
            in_stock: schema.add_bool_field("in_stock", INDEXED),
            price: schema.add_i64_field(column::PRICE, FAST),
            created: schema.add_i64_field(column::CREATED, FAST),
            name_key: schema.add_text_field(column::NAME_KEY, TextOptions::default().set_fast("raw")),
        };
        (fields, schema.build())
    }

    fn document(&self, entry: &Entry) -> TantivyDocument {
        let mut document = TantivyDocument::new();
        document.add_i64(self.id, entry.id);
        document.add_text(self.sku, written_sku(&entry.sku));
        // Without letters and digits it is like every query that has none.
        let (squeezed, title) = (squeeze(&entry.sku), normalize(&entry.name));
        if !squeezed.is_empty() {
            document.add_text(self.sku, &squeezed);
        }
        if !title.is_empty() {
            document.add_text(self.title, title);
        }
        for term in index_terms(&entry.name) {
            document.add_text(self.name, term);
        }
        let mut codes = index_terms(&entry.sku);
        codes.insert(squeezed);
        codes.remove("");
        for term in codes {
            document.add_text(self.code, term);
        }
        for term in index_terms(&entry.description) {
            document.add_text(self.text, term);
        }
        if let Some(category) = entry.category_id {
            document.add_i64(self.category, category);
        }
        document.add_bool(self.in_stock, entry.in_stock);
        document.add_i64(self.price, entry.price);
        document.add_i64(self.created, entry.created_at);
        document.add_text(self.name_key, &entry.name_key);
        document
    }
}

/// The term of a SKU as it is written. No SKU has a `=`.
pub fn written_sku(sku: &str) -> String {
    format!("={sku}")
}

/// What a search reads: the documents as of one moment, and the categories.
#[derive(Debug)]
pub struct Snapshot {
    pub fields: Fields,
    pub segments: Vec<Segment>,
    pub tree: Arc<Tree>,
    /// Its number among the snapshots of the writer.
    pub generation: u64,
}

impl Snapshot {
    /// The number of products.
    pub fn len(&self) -> u32 {
        self.segments.iter().map(|segment| segment.len).sum()
    }
}

/// The one that changes the index; its calls take time and belong on a blocking thread.
pub struct Writer {
    fields: Fields,
    documents: IndexWriter,
    reader: IndexReader,
    /// The products in the index, and the fingerprints of their entries: what is the same is not written again.
    entries: BTreeMap<i64, u64>,
    segments: HashMap<SegmentId, Segment>,
    /// The number of snapshots.
    generation: u64,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Writer {
    /// Returns the writer of an empty index.
    pub fn open() -> tantivy::Result<Self> {
        let (fields, schema) = Fields::new();
        let newest_first = IndexSortByField { field: column::ID.to_owned(), order: Order::Desc };
        let settings = IndexSettings {
            sort_by_field: Some(newest_first),
            docstore_compress_dedicated_thread: false,
            ..IndexSettings::default()
        };
        let index = Index::builder().schema(schema).settings(settings).create_in_ram()?;
        let options = IndexWriterOptions::builder()
            .memory_budget_per_thread(ARENA_BYTES)
            .num_worker_threads(1)
            .num_merge_threads(1)
            .build();
        let documents = index.writer_with_options(options)?;
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        let (entries, segments) = (BTreeMap::new(), HashMap::new());
        Ok(Self { fields, documents, reader, entries, segments, generation: 0 })
    }

    /// The number of products in the index, those that are not committed yet included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Puts entries into the index, in place of those with the same ids. Returns how many were not there as they are.
    pub fn put(&mut self, entries: &[Entry]) -> tantivy::Result<usize> {
        let mut changed = 0;
        for entry in entries {
            let fingerprint = entry.fingerprint();
            let before = self.entries.insert(entry.id, fingerprint);
            if before == Some(fingerprint) {
                continue;
            }
            if before.is_some() {
                self.documents.delete_term(Term::from_field_i64(self.fields.id, entry.id));
            }
            self.documents.add_document(self.fields.document(entry))?;
            changed += 1;
        }
        Ok(changed)
    }

    /// Takes a product out of the index. Returns whether it was there.
    pub fn remove(&mut self, id: i64) -> bool {
        let there = self.entries.remove(&id).is_some();
        if there {
            self.documents.delete_term(Term::from_field_i64(self.fields.id, id));
        }
        there
    }

    /// The ids in the index behind `after`, up to `upto`.
    pub fn ids(&self, after: i64, upto: i64) -> Vec<i64> {
        self.entries.range(after.saturating_add(1)..=upto).map(|(id, _)| *id).collect()
    }

    /// Commits what was put in and taken out, and returns the index as it is then.
    pub fn commit(&mut self, tree: Arc<Tree>) -> tantivy::Result<Snapshot> {
        self.documents.commit()?;
        self.snapshot(tree)
    }

    /// Returns the index as of the last commit.
    pub fn snapshot(&mut self, tree: Arc<Tree>) -> tantivy::Result<Snapshot> {
        self.reader.reload()?;
        let searcher = self.reader.searcher();
        let mut segments = HashMap::with_capacity(searcher.segment_readers().len());
        for reader in searcher.segment_readers() {
            let id = reader.segment_id();
            segments.insert(id, Segment::open(reader, self.segments.get(&id))?);
        }
        self.segments = segments;
        self.generation += 1;
        let segments = self.segments.values().cloned().collect();
        Ok(Snapshot { fields: self.fields, segments, tree, generation: self.generation })
    }

    /// Reports whether segments were merged since the last snapshot: the memory of the old ones is held until the next.
    pub fn has_merged(&self) -> tantivy::Result<bool> {
        let ids = self.documents.index().searchable_segment_ids()?;
        Ok(ids.iter().any(|id| !self.segments.contains_key(id)))
    }
}
