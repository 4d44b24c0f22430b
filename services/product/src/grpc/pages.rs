//! Pages of the catalogue, from the messages that ask for them.

use shoppee_proto::product::v1::{ListProductsRequest, ProductSort, SearchProductsRequest, SearchSort};

use crate::{
    catalogue::Catalogue,
    error::Error,
    listing::{self, Filters, Page, Sort},
    search::{Query, Ranking, Results, SearchRequest},
};

/// Returns a page of a list; with `newest`, as it is after the writes just before.
pub async fn list(catalogue: &Catalogue, asked: ListProductsRequest, newest: bool) -> Result<Page, Error> {
    let filters = Filters::parse(asked.category, asked.min_price, asked.max_price, asked.in_stock)
        .map_err(Error::Malformed)?;
    let limit = listing::limit(asked.limit).map_err(Error::Malformed)?;
    let sort = sort(asked.sort)?;
    catalogue.list(&filters, sort, limit, asked.cursor.as_deref(), newest).await
}

/// Returns a page of a search; with `newest`, as it is after the writes just before.
pub async fn search(
    catalogue: &Catalogue,
    asked: SearchProductsRequest,
    newest: bool,
) -> Result<Results, Error> {
    let query = Query::parse(asked.q)?;
    let filters = Filters::parse(asked.category, asked.min_price, asked.max_price, asked.in_stock)
        .map_err(Error::Malformed)?;
    let limit = listing::limit(asked.limit).map_err(Error::Malformed)?;
    let ranking = ranking(asked.sort)?;
    let search = SearchRequest { query, filters, ranking, limit, facets: asked.facets.unwrap_or_default() };
    catalogue.search(&search, asked.cursor.as_deref(), newest).await
}

fn sort(number: i32) -> Result<Sort, Error> {
    match ProductSort::try_from(number) {
        Ok(ProductSort::Unspecified | ProductSort::Newest) => Ok(Sort::Newest),
        Ok(ProductSort::PriceAsc) => Ok(Sort::PriceAsc),
        Ok(ProductSort::PriceDesc) => Ok(Sort::PriceDesc),
        Ok(ProductSort::Name) => Ok(Sort::Name),
        Err(_) => Err(Error::malformed("sort", "is unknown")),
    }
}

fn ranking(number: i32) -> Result<Ranking, Error> {
    match SearchSort::try_from(number) {
        Ok(SearchSort::Unspecified | SearchSort::Relevance) => Ok(Ranking::Relevance),
        Ok(SearchSort::Newest) => Ok(Ranking::By(Sort::Newest)),
        Ok(SearchSort::PriceAsc) => Ok(Ranking::By(Sort::PriceAsc)),
        Ok(SearchSort::PriceDesc) => Ok(Ranking::By(Sort::PriceDesc)),
        Ok(SearchSort::Name) => Ok(Ranking::By(Sort::Name)),
        Err(_) => Err(Error::malformed("sort", "is unknown")),
    }
}
