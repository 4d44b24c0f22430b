//! The inverted index, which is in memory and built from PostgreSQL: the schema of its documents and the
//! writer. A search reads an immutable [`Snapshot`].
//!
//! The documents of a segment are sorted by descending id, also after a merge. The first documents of a set
//! are therefore its newest products.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tantivy::{
    Index, IndexReader, IndexSettings, IndexSortByField, IndexWriter, Order, ReloadPolicy, TantivyDocument,
    Term,
    index::SegmentId,
    indexer::IndexWriterOptions,
    schema::{FAST, Field, INDEXED, IndexRecordOption, Schema, TextFieldIndexing, TextOptions},
};

use super::{
    analyzer::{index_terms, normalize, strip_separators},
    categories::CategoryTree,
    segment::{Segment, column},
};
use crate::store::search::IndexEntry;

/// The memory budget of the writer before it closes a segment. With tantivy's minimum of 15 MB, merges of small segments take
/// a fifth of the processor time of the first pass. Bytes.
const WRITER_MEMORY_BYTES: usize = 50_000_000;
/// The generation of the next snapshot.
static NEXT_GENERATION: AtomicU64 = AtomicU64::new(0);

/// The fields of a document. Terms are indexed without frequencies and positions, because the ranking uses
/// neither.
#[derive(Clone, Copy, Debug)]
pub struct Fields {
    pub id: Field,
    /// The exact SKU with the prefix `=`, and the SKU without separators.
    pub sku: Field,
    /// The whole name, normalized.
    pub title: Field,
    /// The words of the name.
    pub name: Field,
    /// The words of the SKU, in a field of their own: there are as many as products.
    pub code: Field,
    /// The words of the description.
    pub text: Field,
    pub category: Field,
    pub in_stock: Field,
    price: Field,
    created: Field,
    name_key: Field,
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

    fn document(&self, entry: &IndexEntry) -> TantivyDocument {
        let mut document = TantivyDocument::new();
        document.add_i64(self.id, entry.id);
        document.add_text(self.sku, exact_sku_term(&entry.sku));
        // An empty term would match every query without letters and digits.
        let (squeezed, title) = (strip_separators(&entry.sku), normalize(&entry.name));
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

/// Returns the term of an exact SKU. No SKU contains `=`.
pub fn exact_sku_term(sku: &str) -> String {
    format!("={sku}")
}

/// An immutable snapshot for searches: the documents and the categories.
#[derive(Debug)]
pub struct Snapshot {
    pub fields: Fields,
    pub segments: Vec<Segment>,
    pub categories: Arc<CategoryTree>,
    /// The number of the snapshot among those of the process, whichever writer made it.
    pub generation: u64,
}

impl Snapshot {
    /// Returns the number of products.
    pub fn len(&self) -> u32 {
        self.segments.iter().map(|segment| segment.len).sum()
    }
}

/// The index writer. Its calls block, so they belong on a blocking thread.
pub struct Writer {
    fields: Fields,
    documents: IndexWriter,
    reader: IndexReader,
    /// The indexed products with the fingerprints of their entries. Unchanged entries are not written again.
    entries: BTreeMap<i64, u64>,
    segments: HashMap<SegmentId, Segment>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Writer {
    /// Creates the writer of an empty index.
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
            .memory_budget_per_thread(WRITER_MEMORY_BYTES)
            .num_worker_threads(1)
            .num_merge_threads(1)
            .build();
        let documents = index.writer_with_options(options)?;
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        let (entries, segments) = (BTreeMap::new(), HashMap::new());
        Ok(Self { fields, documents, reader, entries, segments })
    }

    /// Returns the number of products in the index, including uncommitted ones.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Inserts or replaces entries by id. Returns the number of changed entries.
    pub fn upsert(&mut self, entries: &[IndexEntry]) -> tantivy::Result<usize> {
        let mut changed = 0;
        for entry in entries {
            let fingerprint = fingerprint(entry);
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

    /// Removes a product from the index. Returns whether it was present.
    pub fn remove(&mut self, id: i64) -> bool {
        let removed = self.entries.remove(&id).is_some();
        if removed {
            self.documents.delete_term(Term::from_field_i64(self.fields.id, id));
        }
        removed
    }

    /// Returns the indexed ids behind `after`, up to `upto`.
    pub fn ids_in_range(&self, after: i64, upto: i64) -> Vec<i64> {
        self.entries.range(after.saturating_add(1)..=upto).map(|(id, _)| *id).collect()
    }

    /// Commits the changes and returns a snapshot.
    pub fn commit(&mut self, categories: Arc<CategoryTree>) -> tantivy::Result<Snapshot> {
        self.documents.commit()?;
        self.snapshot(categories)
    }

    /// Returns a snapshot of the last commit.
    pub fn snapshot(&mut self, categories: Arc<CategoryTree>) -> tantivy::Result<Snapshot> {
        self.reader.reload()?;
        let searcher = self.reader.searcher();
        let mut segments = HashMap::with_capacity(searcher.segment_readers().len());
        for reader in searcher.segment_readers() {
            let id = reader.segment_id();
            segments.insert(id, Segment::open(reader, self.segments.get(&id))?);
        }
        self.segments = segments;
        let segments = self.segments.values().cloned().collect();
        let generation = NEXT_GENERATION.fetch_add(1, Ordering::Relaxed);
        Ok(Snapshot { fields: self.fields, segments, categories, generation })
    }

    /// Reports whether segments were merged since the last snapshot, which still occupies the memory of the
    /// old ones.
    pub fn has_merged(&self) -> tantivy::Result<bool> {
        let ids = self.documents.index().searchable_segment_ids()?;
        Ok(ids.iter().any(|id| !self.segments.contains_key(id)))
    }
}

fn fingerprint(entry: &IndexEntry) -> u64 {
    let mut hasher = DefaultHasher::new();
    entry.hash(&mut hasher);
    hasher.finish()
}
