package attention
