//! Example programs for coblk. Each is a file, or a folder, beside this one; `README.md` at the root
//! lists them. This library is empty: cargo asks a package for one.
