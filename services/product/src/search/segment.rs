//! One segment of the index: the documents of a term, a prefix or a fuzzy term, and the columns of documents.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use roaring::RoaringBitmap;
use tantivy::{
    DocId, SegmentReader, Term,
    columnar::{Column, ColumnValues, StrColumn},
    postings::{BlockSegmentPostings, TermInfo},
    query::FuzzyTermQuery,
    schema::{Field, IndexRecordOption},
};

/// A set of documents of a segment.
pub type Docs = RoaringBitmap;

/// The names of the columnar fields.
pub mod column {
    pub const ID: &str = "id";
    pub const CATEGORY: &str = "category";
    pub const PRICE: &str = "price";
    pub const CREATED: &str = "created";
    pub const NAME_KEY: &str = "name_key";
}

/// The minimum size of a cached set; smaller ones are read from the postings each time. Documents.
const MIN_CACHED_DOCS: u64 = 1_000;
/// The memory for cached sets. Bytes per document of the segment.
const CACHE_BYTES_PER_DOC: usize = 16;

/// The immutable contents of a segment, including deleted documents.
pub struct Postings {
    reader: SegmentReader,
    ids: Arc<dyn ColumnValues<i64>>,
    prices: Arc<dyn ColumnValues<i64>>,
    created: Arc<dyn ColumnValues<i64>>,
    /// `None` if no product has a category.
    categories: Option<Column<i64>>,
    names: Option<StrColumn>,
    /// Large sets: decoding their postings takes longer than using them.
    cache: Mutex<SetCache>,
}

#[derive(Debug, Default)]
struct SetCache {
    sets: HashMap<SetKey, Arc<Docs>>,
    bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum SetKey {
    Term(Term),
    Prefix(Term),
}

impl std::fmt::Debug for Postings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postings").field("documents", &self.reader.max_doc()).finish_non_exhaustive()
    }
}

impl Postings {
    fn open(reader: &SegmentReader) -> tantivy::Result<Self> {
        let columns = reader.fast_fields();
        Ok(Self {
            reader: reader.clone(),
            ids: columns.column_first_or_default(column::ID)?,
            prices: columns.column_first_or_default(column::PRICE)?,
            created: columns.column_first_or_default(column::CREATED)?,
            categories: columns.column_opt(column::CATEGORY)?,
            names: columns.str(column::NAME_KEY)?,
            cache: Mutex::default(),
        })
    }

    /// Returns the documents with a term.
    fn term(&self, term: &Term) -> tantivy::Result<Arc<Docs>> {
        self.cached(SetKey::Term(term.clone()), || {
            let index = self.reader.inverted_index(term.field())?;
            match index.get_term_info(term)? {
                Some(info) => self.read(term.field(), &info),
                None => Ok(Docs::new()),
            }
        })
    }

    /// Returns the documents with a term that has the prefix.
    fn prefix(&self, field: Field, prefix: &str) -> tantivy::Result<Arc<Docs>> {
        self.cached(SetKey::Prefix(Term::from_field_text(field, prefix)), || {
            let index = self.reader.inverted_index(field)?;
            let mut terms = index.terms().range().ge(prefix).into_stream()?;
            let mut docs = Docs::new();
            while let Some((term, info)) = terms.next() {
                if !term.starts_with(prefix.as_bytes()) {
                    break;
                }
                docs |= self.read(field, info)?;
            }
            Ok(docs)
        })
    }

    fn read(&self, field: Field, info: &TermInfo) -> tantivy::Result<Docs> {
        let index = self.reader.inverted_index(field)?;
        let mut postings: BlockSegmentPostings =
            index.read_block_postings_from_terminfo(info, IndexRecordOption::Basic)?;
        let mut docs = Docs::new();
        while !postings.docs().is_empty() {
            docs.append(postings.docs().iter().copied()).map_err(io::Error::other)?;
            postings.advance();
        }
        Ok(docs)
    }

    fn cached(
        &self,
        key: SetKey,
        read: impl FnOnce() -> tantivy::Result<Docs>,
    ) -> tantivy::Result<Arc<Docs>> {
        if let Some(docs) = self.lock().sets.get(&key) {
            return Ok(docs.clone());
        }
        let docs = Arc::new(read()?);
        if docs.len() >= MIN_CACHED_DOCS {
            let bytes = docs.serialized_size();
            let max_bytes = CACHE_BYTES_PER_DOC * usize::try_from(self.reader.max_doc()).unwrap_or_default();
            let mut cache = self.lock();
            if cache.bytes + bytes > max_bytes {
                *cache = SetCache::default();
            }
            cache.bytes += bytes;
            cache.sets.insert(key, docs.clone());
        }
        Ok(docs)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, SetCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A segment as of one commit; cheap to clone.
#[derive(Clone, Debug)]
pub struct Segment {
    postings: Arc<Postings>,
    deleted: Arc<Docs>,
    /// The operation stamp of the last deletion.
    deleted_at: Option<u64>,
    /// The number of documents that are not deleted.
    pub len: u32,
}

impl Segment {
    /// Opens the segment of `reader`; `before` is the same segment as of an earlier commit. Only the
    /// deletions of a segment change.
    pub fn open(reader: &SegmentReader, before: Option<&Self>) -> tantivy::Result<Self> {
        let deleted_at = reader.delete_opstamp();
        if let Some(before) = before.filter(|before| before.deleted_at == deleted_at) {
            return Ok(before.clone());
        }
        let postings = match before {
            Some(before) => before.postings.clone(),
            None => Arc::new(Postings::open(reader)?),
        };
        let mut deleted = Docs::new();
        if let Some(alive) = reader.alive_bitset() {
            deleted.extend((0..reader.max_doc()).filter(|doc| alive.is_deleted(*doc)));
        }
        Ok(Self { postings, deleted: Arc::new(deleted), deleted_at, len: reader.num_docs() })
    }

    /// Returns the documents with a term.
    pub fn term(&self, term: &Term) -> tantivy::Result<Docs> {
        Ok(&*self.postings.term(term)? - &*self.deleted)
    }

    /// Returns the documents with a word in this field.
    pub fn word(&self, field: Field, word: &str) -> tantivy::Result<Docs> {
        self.term(&Term::from_field_text(field, word))
    }

    /// Returns the documents with a word in this field that has the prefix.
    pub fn prefix(&self, field: Field, prefix: &str) -> tantivy::Result<Docs> {
        Ok(&*self.postings.prefix(field, prefix)? - &*self.deleted)
    }

    /// Returns terms of this field within an edit distance of `max_edits` (insertions, deletions,
    /// substitutions, transpositions). Terms of deleted documents are included.
    pub fn fuzzy_terms(&self, field: Field, word: &str, max_edits: u8) -> tantivy::Result<Vec<String>> {
        let query = FuzzyTermQuery::new(Term::from_field_text(field, word), max_edits, true);
        let index = self.postings.reader.inverted_index(field)?;
        let mut terms = index.terms().search(query.automaton()?).into_stream()?;
        let mut matches = Vec::new();
        while let Some((term, _)) = terms.next() {
            matches.push(String::from_utf8_lossy(term).into_owned());
        }
        Ok(matches)
    }

    pub fn id(&self, doc: DocId) -> i64 {
        self.postings.ids.get_val(doc)
    }

    /// Returns the first document with a product id below `id`. Documents are sorted by descending id.
    pub fn first_below(&self, id: i64) -> DocId {
        let (mut low, mut high) = (0, self.postings.reader.max_doc());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.id(middle) < id {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    pub fn price(&self, doc: DocId) -> i64 {
        self.postings.prices.get_val(doc)
    }

    pub fn created_at(&self, doc: DocId) -> i64 {
        self.postings.created.get_val(doc)
    }

    pub fn category(&self, doc: DocId) -> Option<i64> {
        self.postings.categories.as_ref()?.first(doc)
    }

    /// Returns the ordinal of a document's name in the sorted names of this segment.
    pub fn name_ordinal(&self, doc: DocId) -> i64 {
        let ordinal = self.postings.names.as_ref().and_then(|names| names.ords().first(doc));
        ordinal.and_then(|ordinal| i64::try_from(ordinal).ok()).unwrap_or_default()
    }

    /// Returns the sort key of a name by its ordinal.
    pub fn name_at(&self, ordinal: i64) -> tantivy::Result<String> {
        let mut name = String::new();
        if let (Some(names), Ok(ordinal)) = (&self.postings.names, u64::try_from(ordinal)) {
            names.ord_to_str(ordinal, &mut name)?;
        }
        Ok(name)
    }

    /// Returns the ordinal of the first name that is not before `name`, or the number of names if there is
    /// none.
    pub fn ordinal_of(&self, name: &str) -> tantivy::Result<i64> {
        let Some(names) = &self.postings.names else { return Ok(0) };
        let (mut low, mut high) = (0, i64::try_from(names.num_terms()).unwrap_or(i64::MAX));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.name_at(middle)?.as_str() < name {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}
