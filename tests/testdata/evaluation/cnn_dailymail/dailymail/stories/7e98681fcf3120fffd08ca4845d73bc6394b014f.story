A baker lost his whistle.

"I miss it," he said.

@highlight

Whistle lost by baker
