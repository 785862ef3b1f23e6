//! The stylesheet and the icon of all pages. Their paths contain the hash of their bytes, so that caches may keep
//! them without end.

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

/// The asset files and the paths under which they are served.
pub struct Assets {
    /// References to the files, for every page.
    pub frame: Frame,
}

impl Assets {
    /// Creates the assets of pages that show the product name `product`.
    pub fn new(product: &str) -> Self {
        let path = |content: &str, ext: &str| {
            let hash = base64url(&sha256(content.as_bytes())[..12]);
            format!("/assets/{hash}.{ext}")
        };
        Self {
            frame: Frame {
                product: product.to_owned(),
                stylesheet: path(STYLESHEET, "css"),
                icon: path(ICON, "svg"),
            },
        }
    }

    /// Returns the content and the media type of the file at a path.
    pub fn find(&self, path: &str) -> Option<(&'static str, &'static str)> {
        match path {
            _ if path == self.frame.stylesheet => Some((STYLESHEET, "text/css; charset=utf-8")),
            _ if path == self.frame.icon => Some((ICON, "image/svg+xml")),
            _ => None,
        }
    }
}
