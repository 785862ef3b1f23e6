//! The stylesheet and the icon of all pages. Their paths contain the hash of their bytes, so that caches may keep
//! them without end.

use std::borrow::Cow;

use crate::secret::{base64url, sha256};

const STYLESHEET: &str = include_str!("../../templates/assets/portcullis.css");
const ICON: &str = include_str!("../../templates/assets/portcullis.svg");

/// The values that the layout of every page needs.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Product name.
    pub product: String,
    /// Path of the stylesheet.
    pub stylesheet: String,
    /// Path of the icon.
    pub icon: String,
}

/// The product name of an installation that sets no other.
const PRODUCT: &str = "Portcullis";

/// The asset files and the paths under which they are served.
pub struct Assets {
    /// References to the files, for every page.
    pub frame: Frame,
    icon: Cow<'static, str>,
}

impl Assets {
    /// Creates the assets of pages that show the product name `product`.
    pub fn new(product: &str) -> Self {
        let path = |content: &str, ext: &str| {
            let hash = base64url(&sha256(content.as_bytes())[..12]);
            format!("/assets/{hash}.{ext}")
        };
        let icon = match product {
            PRODUCT => Cow::Borrowed(ICON),
            other => Cow::Owned(monogram(other)),
        };
        Self {
            frame: Frame {
                product: product.to_owned(),
                stylesheet: path(STYLESHEET, "css"),
                icon: path(&icon, "svg"),
            },
            icon,
        }
    }

    /// Returns the content and the media type of the file at a path.
    pub fn find(&self, path: &str) -> Option<(&str, &'static str)> {
        match path {
            _ if path == self.frame.stylesheet => Some((STYLESHEET, "text/css; charset=utf-8")),
            _ if path == self.frame.icon => Some((&self.icon, "image/svg+xml")),
            _ => None,
        }
    }
}

/// Returns the icon of another product: its first letter or digit under the arch.
fn monogram(product: &str) -> String {
    let letter = product.chars().find(|c| c.is_alphanumeric());
    // Letters and digits need no escape. A letter in upper case may be several.
    let letter: String = letter.into_iter().flat_map(char::to_uppercase).collect();
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" width="64" height="64">
  <path fill="#24706a" d="M6 62V28a26 26 0 0 1 52 0v34z"/>
  <text x="32" y="49" fill="#fbf9f4" font-family="sans-serif" font-size="36" font-weight="600" text-anchor="middle">{letter}</text>
</svg>
"##
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_product_has_its_own_mark() {
        let icon = |product: &str| {
            let assets = Assets::new(product);
            let (icon, kind) = assets.find(&assets.frame.icon).unwrap();
            assert_eq!(kind, "image/svg+xml");
            icon.to_owned()
        };
        assert_eq!(icon("Portcullis"), ICON);
        assert!(icon("acme <id>").contains(">A</text>"));
        assert!(icon("\u{2014} 4711").contains(">4</text>"));
        assert!(icon("<&>").contains("></text>"));
        assert!(!icon("acme").contains("M29.5"), "the mark of Portcullis");
    }
}
