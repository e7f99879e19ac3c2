/* SPDX-License-Identifier: MIT */
/* The README at the top of the mount. */
#ifndef FLUXFS_FS_README_H
#define FLUXFS_FS_README_H

extern const char readme_text[];

#endif
