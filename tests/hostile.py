"""Texts that would do something if a page, a table or a figure took them for more than text."""

HOSTILE = (
    "<script>window.ran = 1</script>",
    '<img src="x" onerror="window.ran = 2">',
    "</script><script>window.ran = 3</script>",
    "</title></style><svg onload=window.ran=4>",
    "\"><iframe srcdoc='<script>parent.ran = 5</script>'></iframe>",
    "' onmouseover='window.ran = 6' autofocus onfocus='window.ran = 6",
    '<a href="javascript:window.ran = 7">click</a>',
    "&lt;script&gt;window.ran = 8&lt;/script&gt; &amp;amp; &#39;",
    "{{ 7 * 7 }} {% for x in y %} {# 9 #} ${window.ran = 9}`${window.ran = 9}`",
    "<!-- <script> window.ran = 10 --> ]]>",
    "\u2028window.ran = 11\u2029//\\u003cscript\\u003e\\",
    '<meta http-equiv="refresh" content="0;url=javascript:window.ran=12"><base href="http://localhost/">',
    "<style>*{display:none}</style><link rel=stylesheet href=//localhost/x> $x_1^2$ %s",
)
