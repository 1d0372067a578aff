//! Thousands of peers. These checks measure, so nothing should run beside them.

#![expect(clippy::disallowed_methods, reason = "tests of the lab are side effects throughout")]

mod kernel_scale;
mod kube_scale;

integration::group!(kernel_scale, kube_scale);
