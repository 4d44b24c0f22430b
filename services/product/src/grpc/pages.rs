//! Pages of lists and searches, from their request messages.

use shoppee_proto::product::v1::{ListProductsRequest, ProductSort, SearchProductsRequest, SearchSort};

use crate::{
    catalogue::Catalogue,
    error::Error,
    listing::{self, Filters, Page, Sort},
    search::{Query, Ranking, Results, SearchRequest},
};

/// Returns a page of a list. With `read_your_writes`, the page includes the writes before this call.
pub async fn list(
    catalogue: &Catalogue,
    request: ListProductsRequest,
    read_your_writes: bool,
) -> Result<Page, Error> {
    let filters = Filters::parse(request.category, request.min_price, request.max_price, request.in_stock)
        .map_err(Error::Malformed)?;
    let limit = listing::parse_limit(request.limit).map_err(Error::Malformed)?;
    let sort = sort(request.sort)?;
    catalogue.list(&filters, sort, limit, request.cursor.as_deref(), read_your_writes).await
}

/// Returns a page of a search. With `read_your_writes`, the page includes the writes before this call.
pub async fn search(
    catalogue: &Catalogue,
    request: SearchProductsRequest,
    read_your_writes: bool,
) -> Result<Results, Error> {
    let query = Query::parse(request.q)?;
    let filters = Filters::parse(request.category, request.min_price, request.max_price, request.in_stock)
        .map_err(Error::Malformed)?;
    let limit = listing::parse_limit(request.limit).map_err(Error::Malformed)?;
    let ranking = ranking(request.sort)?;
    let search = SearchRequest { query, filters, ranking, limit, facets: request.facets.unwrap_or_default() };
    catalogue.search(&search, request.cursor.as_deref(), read_your_writes).await
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
