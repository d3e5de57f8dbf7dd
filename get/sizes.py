"""The published sizes of GET and ViT (arXiv:2401.08639, table of appendix A), as plain numbers."""

# name: (width, injection blocks, heads, equilibrium MLP ratio); 3 equilibrium blocks in all
GET_SIZES = {
    "GET-T/2": (256, 6, 4, 6.0),
    "GET-M/2": (384, 6, 6, 6.0),
    "GET-S/2": (512, 6, 8, 8.0),
    "GET-B/2": (768, 1, 12, 12.0),
    "GET-B/2+": (768, 6, 12, 8.0),
}
# name: (width, blocks, heads); each with patches of 2, 4 and 8 pixels
VIT_SIZES = {
    "ViT-S": (384, 12, 6),
    "ViT-B": (768, 12, 12),
    "ViT-L": (1024, 24, 16),
    "ViT-XL": (1152, 28, 16),
}
SIZES = (*GET_SIZES, *(f"{name}/{patch}" for name in VIT_SIZES for patch in (2, 4, 8)))
