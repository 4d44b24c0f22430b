//! The countries of ISO 3166-1, by their alpha-2 codes.

/// The codes in alphabetical order, two letters each.
const CODES: &str = "ADAEAFAGAIALAMAOAQARASATAUAWAXAZBABBBDBEBFBGBHBIBJBLBMBNBOBQBRBSBTBVBWBYBZCACCCDCFCGCHCICKCLCM\
CNCOCRCUCVCWCXCYCZDEDJDKDMDODZECEEEGEHERESETFIFJFKFMFOFRGAGBGDGEGFGGGHGIGLGMGNGPGQGRGSGTGUGWGYHKHMHNHRHTHUIDIEIL\
IMINIOIQIRISITJEJMJOJPKEKGKHKIKMKNKPKRKWKYKZLALBLCLILKLRLSLTLULVLYMAMCMDMEMFMGMHMKMLMMMNMOMPMQMRMSMTMUMVMWMXMYMZ\
NANCNENFNGNINLNONPNRNUNZOMPAPEPFPGPHPKPLPMPNPRPSPTPWPYQARERORSRURWSASBSCSDSESGSHSISJSKSLSMSNSOSRSSSTSVSXSYSZTCTD\
TFTGTHTJTKTLTMTNTOTRTTTVTWTZUAUGUMUSUYUZVAVCVEVGVIVNVUWFWSYEYTZAZMZW";

/// Reports whether `code` is an upper-case alpha-2 code.
pub fn exists(code: &str) -> bool {
    code.len() == 2 && CODES.as_bytes().chunks(2).any(|country| country == code.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_249_codes_exist_and_no_other_text_does() {
        assert_eq!(CODES.len() / 2, 249);
        assert!(exists("DE") && exists("NL") && exists("ZW") && exists("AD"));
        for invalid in ["", "D", "de", "XX", "EU", "DEU", "Ü", "WA"] {
            assert!(!exists(invalid), "{invalid}");
        }
    }
}
