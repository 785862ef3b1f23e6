//! Macros for the enums of the protocol.

/// Implements `ALL`, `as_str` and `parse` for an enum whose variants have registered names.
macro_rules! names {
    ($type:ident: $($variant:ident $name:literal),*) => {
        impl $type {
            /// Every variant.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the registered name, which is also the stored text.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Parses the registered name.
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|variant| variant.as_str() == text)
            }
        }
    };
}

/// Defines the reasons for which one file rejects a request: an enum that converts to
/// [`Detail`](crate::oauth::Detail).
macro_rules! details {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident => $detail:expr,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name {
            $($(#[$variant_meta])* $variant,)*
        }

        impl From<$name> for $crate::oauth::Detail {
            fn from(reason: $name) -> Self {
                use $crate::oauth::Detail;
                match reason {
                    $($name::$variant => $detail,)*
                }
            }
        }
    };
}

pub(crate) use {details, names};
